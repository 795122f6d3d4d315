//! Asking the Hub: which addresses may be asked, and what goes with the question.
//!
//! Redirects are followed here and not by the HTTP client, since two things depend on where they lead: a key goes to the Hub
//! alone, and plain HTTP is spoken with this machine alone, where a test or a mirror listens.

use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE};
use ureq::http::{HeaderValue, Response, Uri};
use ureq::{Agent, Body};

use crate::listing::Listing;
use crate::{Error, Repo};

/// Where the Hub is, if HF_ENDPOINT does not say.
const HUB: &str = "https://huggingface.co";
/// How often an answer may lead elsewhere.
const MAX_REDIRECTS: usize = 5;
/// The longest listing, in bytes: some 100 000 files.
const MAX_LISTING: u64 = 32 << 20;
/// How long a connection may stay silent.
const SILENCE: Duration = Duration::from_secs(60);
/// What is left as it is in a part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The Hub, or what speaks like it.
pub struct Hub {
    agent: Agent,
    base: Uri,
    token: Option<HeaderValue>,
    pub(crate) pause: Duration,
}

/// What came of a question.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// The sum of the file that the Hub redirected from, in its words.
    pub(crate) linked_etag: Option<String>,
    /// For messages: where it came from, without the query.
    pub(crate) url: String,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, and `HF_TOKEN` where there is one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_env() -> Result<Self, Error> {
        let set = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self::new(set("HF_ENDPOINT").as_deref().unwrap_or(HUB), set("HF_TOKEN").as_deref())
    }

    /// At an address, with a key.
    ///
    /// # Errors
    /// An address that is not to be asked, or a key that is none.
    pub fn new(endpoint: &str, token: Option<&str>) -> Result<Self, Error> {
        let base: Uri = endpoint.trim_end_matches('/').parse().map_err(|_| Error::Endpoint("is no address".into()))?;
        let scheme = base.scheme_str().unwrap_or_default();
        if !(scheme == "https" || scheme == "http" && is_loopback(&base)) || has_user(&base) || base.query().is_some() {
            return Err(Error::Endpoint(format!("`{}` cannot be used", without_query(&base))));
        }
        let token = token.map(|token| {
            let plain = token.bytes().all(|b| b.is_ascii_graphic());
            let value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| plain);
            let mut value = value.ok_or(Error::Token)?;
            value.set_sensitive(true);
            Ok(value)
        });
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("anemone/", env!("CARGO_PKG_VERSION")));
        // A proxy of the environment is not asked for what is on this machine.
        let config = if is_loopback(&base) { config.proxy(None) } else { config };
        Ok(Self { agent: config.build().new_agent(), base, token: token.transpose()?, pause: Duration::from_secs(1) })
    }

    /// With another pause before the first new attempt; each further one is twice as long.
    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// The models of a repository.
    ///
    /// # Errors
    /// It cannot be had, or is no listing.
    pub fn list(&self, repo: &Repo) -> Result<Listing, Error> {
        let path = format!("/api/models/{}/{}?blobs=true", repo.owner, repo.name);
        let Answer { response, url, .. } = self.get(&path, 0)?;
        if response.status() != 200 {
            return Err(refused(url, response.status().as_u16()));
        }
        let mut answer = Vec::new();
        let read = response.into_body().into_reader().take(MAX_LISTING + 1).read_to_end(&mut answer);
        read.map_err(|e| Error::Connection { url: url.clone(), problem: e.to_string() })?;
        if answer.len() as u64 > MAX_LISTING {
            return Err(Error::Answer { url, problem: format!("a listing of more than {MAX_LISTING} bytes") });
        }
        Listing::parse(repo, &answer).map_err(|problem| Error::Answer { url, problem })
    }

    /// A file of a repository, from byte `start` on.
    pub(crate) fn file(&self, listing: &Listing, path: &str, start: u64) -> Result<Answer, Error> {
        let Repo { owner, name } = &listing.repo;
        let path: Vec<String> = path.split('/').map(|part| utf8_percent_encode(part, PART).to_string()).collect();
        self.get(&format!("/{owner}/{name}/resolve/{}/{}", listing.revision, path.join("/")), start)
    }

    /// Asks, and asks again where the answer leads.
    fn get(&self, path: &str, start: u64) -> Result<Answer, Error> {
        let mut uri = resolve(&self.base, path).ok_or_else(|| Error::Endpoint("is no address".into()))?;
        let mut linked_etag = None;
        for _ in 0..=MAX_REDIRECTS {
            let url = without_query(&uri);
            let at_home = origin(&uri) == origin(&self.base);
            let mut request = self.agent.get(&uri).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| at_home) {
                request = request.header(AUTHORIZATION, token);
            }
            if start > 0 {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            let response = request.call().map_err(|e| failed(url.clone(), &e))?;
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            if at_home {
                linked_etag = header("x-linked-etag").or(linked_etag);
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, linked_etag, url });
            }
            let wrong = |problem: &str| Error::Answer { url: url.clone(), problem: problem.to_owned() };
            let next = header(LOCATION.as_str()).ok_or_else(|| wrong("a redirect that leads nowhere"))?;
            let next = resolve(&uri, &next).ok_or_else(|| wrong("a redirect that leads to no address"))?;
            let near = next.scheme_str() == Some("http") && is_loopback(&next) && is_loopback(&self.base);
            if !(next.scheme_str() == Some("https") || near) || has_user(&next) {
                return Err(wrong(&format!("a redirect to {}, which is not https", without_query(&next))));
            }
            uri = next;
        }
        Err(Error::Answer { url: without_query(&uri), problem: format!("more than {MAX_REDIRECTS} redirects") })
    }
}

/// What a status means that is none of those expected.
pub(crate) fn refused(url: String, status: u16) -> Error {
    let hint = match status {
        401 | 403 => "no such repository, or not for everyone: accept its conditions on its page and set HF_TOKEN",
        404 => "no such repository or file",
        429 => "too many requests; ask later, or set HF_TOKEN",
        500.. => "the server is in trouble; ask again later",
        _ => "not what a model hub answers",
    };
    Error::Refused { url, status, hint }
}

fn failed(url: String, error: &ureq::Error) -> Error {
    use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
    let problem = error.to_string();
    match error {
        // A cut within the headers is a protocol's error to the client.
        Io(_) | Timeout(_) | ConnectionFailed | HostNotFound | Protocol(_) => Error::Connection { url, problem },
        _ => Error::Answer { url, problem },
    }
}

/// Where a `Location` leads that was found at `at`: another address, or a path there.
fn resolve(at: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return location.parse().ok();
    }
    let inside = location.starts_with('/') && !location.starts_with("//");
    let address = format!("{}://{}{location}", at.scheme_str()?, at.authority()?);
    address.parse().ok().filter(|_| inside)
}

fn origin(uri: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let default = if uri.scheme_str() == Some("http") { 80 } else { 443 };
    (uri.scheme_str(), uri.host().map(str::to_ascii_lowercase), uri.port_u16().or(Some(default)))
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn has_user(uri: &Uri) -> bool {
    uri.authority().is_none_or(|a| a.as_str().contains('@'))
}

/// An address for messages: a query may be a signature that lets its reader in.
fn without_query(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().map(|p| format!(":{p}")).unwrap_or_default();
    format!("{}://{host}{port}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_to_be_asked() {
        for endpoint in [
            "https://hub.example",
            "https://hub.example/",
            "http://127.0.0.1:80",
            "http://[::1]:1",
            "http://localhost:5",
        ] {
            assert!(Hub::new(endpoint, Some("hf_x")).is_ok(), "{endpoint}");
        }
        for endpoint in
            ["http://hub.example", "http://127.0.0.1.example", "ftp://localhost", "hub", "", "https://u:p@hub.example"]
        {
            let error = Hub::new(endpoint, None).err().unwrap().to_string();
            assert!(error.contains("HF_ENDPOINT") && !error.contains("u:p"), "{endpoint}: {error}");
        }
        let error = Hub::new("https://hub.example", Some("hf_s3cret\r\nX: y")).err().unwrap().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn locations_are_addresses_or_paths() {
        let at: Uri = "https://hub.example:8443/a/b?q".parse().unwrap();
        let to = |location| resolve(&at, location).map(|uri| uri.to_string());
        assert_eq!(to("/c?d").as_deref(), Some("https://hub.example:8443/c?d"));
        assert_eq!(to("https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!((to("//cdn.example/x"), to("file:///etc/passwd"), to("c"), to("")), (None, None, None, None));
        assert_eq!(
            origin(&"HTTPS://Hub.example/x".parse().unwrap()),
            origin(&"https://hub.example:443".parse().unwrap())
        );
    }
}
