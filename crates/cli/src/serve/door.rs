//! Who is let in.
//!
//! On the loopback address anyone on this machine is, except web pages of elsewhere: a browser would carry their requests here,
//! so a `Host` that is not this machine (a name made to resolve to it) and an `Origin` that is not this server are turned away.
//! On any other address a key is asked for. No answer carries CORS headers, so no other page can read one.

use std::net::SocketAddr;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, StatusCode};

use super::refusal::Refusal;

/// The rules of one server.
pub struct Door {
    /// Hash of the key, so that two of equal length are compared, in constant time.
    key: Option<blake3::Hash>,
    loopback: bool,
}

impl Door {
    /// A server at `address` that asks for `key`, if there is one.
    pub fn new(address: SocketAddr, key: Option<&str>) -> Self {
        Self { key: key.map(|k| blake3::hash(k.as_bytes())), loopback: address.ip().is_loopback() }
    }

    /// Whether a request with those headers may come in.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name: HeaderName| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
        let host = text(HOST).unwrap_or_default();
        if self.loopback && !is_loopback(host) {
            let message =
                format!("the Host header names `{host}`, and this server only answers to this machine's own names");
            return Err(Refusal::new(StatusCode::FORBIDDEN, "wrong_host", message));
        }
        if let Some(origin) = text(ORIGIN)
            && origin.split_once("://").is_none_or(|(_, from)| from != host)
        {
            let message = format!("requests of other pages are not answered (Origin `{origin}`)");
            return Err(Refusal::new(StatusCode::FORBIDDEN, "wrong_origin", message));
        }
        let Some(key) = self.key else { return Ok(()) };
        let given = text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        // `Hash` compares in constant time.
        match blake3::hash(given.as_bytes()) == key {
            true => Ok(()),
            false => {
                let message =
                    "a key is asked for: send `Authorization: Bearer KEY` with the key this server was started with";
                Err(Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
            }
        }
    }
}

/// Whether a `Host` header is a name of this machine for itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_this_machine_and_a_key_opens_the_rest() {
        let door = |address: &str, key| Door::new(address.parse().unwrap(), key);
        let code = |door: &Door, headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect();
            door.check(&headers).err().map(|r| r.code)
        };
        let local = door("127.0.0.1:80", None);
        for host in ["localhost:8080", "127.0.0.1", "[::1]:80", "LocalHost"] {
            assert_eq!(code(&local, &[("host", host)]), None, "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:80", "127.0.0.1.nip.io", "[::2]"] {
            assert_eq!(code(&local, &[("host", host)]), Some("wrong_host"), "{host}");
        }
        let origin = |from| code(&local, &[("host", "localhost:1"), ("origin", from)]);
        assert_eq!(origin("http://localhost:1"), None);
        assert_eq!(origin("http://localhost:2"), Some("wrong_origin"));
        assert_eq!(origin("null"), Some("wrong_origin"));
        let open = door("0.0.0.0:80", Some("secret"));
        assert_eq!(code(&open, &[("host", "h"), ("authorization", "Bearer secret")]), None);
        for wrong in ["Bearer secre", "Bearer secret2", "secret", "Basic secret", ""] {
            assert_eq!(code(&open, &[("host", "h"), ("authorization", wrong)]), Some("invalid_api_key"), "{wrong}");
        }
    }
}
