//! Energy, as macOS's own `powermetrics` estimates it: sampled where this program may run it, and otherwise *not measured*,
//! which is another thing than none.
//!
//! `powermetrics` is root's. Root runs it; everybody else does through `sudo -n`, which asks for no password and refuses where
//! one is needed. It prints a block of text for each period. Of a block are read the line that begins it,
//! `*** Sampled system activity (...) (200.31ms elapsed) ***`, and the lines `CPU Power: 431 mW`, `GPU Power: 12 mW` and
//! `ANE Power: 2210 mW`; a block is told when its period is over. Its manual says that these are estimates, not to be compared
//! between machines. No Mac has run this yet: the form is the one that public descriptions and programs that read it agree on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

/// What is told apart, in the words of the text and in those of ours.
const RAILS: [(&str, &str); 3] = [("CPU Power:", "cpu"), ("GPU Power:", "gpu"), ("ANE Power:", "ane")];

/// A period between samples: shorter ones cost the machine time that is to be measured.
const PERIOD: Duration = Duration::from_millis(200);

/// How long the last block may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// What part of a span samples must cover for its energy to count as measured.
const LEAST_COVERED: f64 = 0.95;

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Its beginning.
    pub start: Instant,
    /// Its end.
    pub end: Instant,
}

impl Span {
    /// How long it is.
    pub fn length(&self) -> Duration {
        self.end - self.start
    }

    fn shared(&self, other: &Self) -> Duration {
        self.end.min(other.end).saturating_duration_since(self.start.max(other.start))
    }
}

/// Mean power over a period, in milliwatts, in the order of [`RAILS`]; `None` where the text said nothing of a rail.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    span: Span,
    milliwatts: [Option<f64>; RAILS.len()],
}

/// Reads the text line by line.
#[derive(Default)]
struct Reader {
    block: Option<Sample>,
}

impl Reader {
    /// Takes a line that came at `now`; gives the sample that it ends, if it ends one.
    fn line(&mut self, line: &str, now: Instant) -> Option<Sample> {
        if let Some(elapsed) = elapsed(line) {
            let start = now.checked_sub(elapsed).unwrap_or(now);
            return self.block.replace(Sample { span: Span { start, end: now }, milliwatts: [None; RAILS.len()] });
        }
        let block = self.block.as_mut()?;
        for ((name, _), place) in RAILS.iter().zip(&mut block.milliwatts) {
            // A rail is told again in sections of its own; what is said first is the estimate that the others are of.
            if let (None, Some(rest)) = (&place, line.trim().strip_prefix(name)) {
                *place = rest.trim().strip_suffix("mW").and_then(number);
            }
        }
        None
    }

    /// The sample that the text's end leaves.
    fn end(self) -> Option<Sample> {
        self.block
    }
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0)
}

/// The period of a block that begins with this line, if one does.
fn elapsed(line: &str) -> Option<Duration> {
    let rest = line.trim().strip_prefix("*** Sampled system activity")?;
    let (_, last) = rest.rsplit_once('(')?;
    let ms = last.split_once("ms elapsed)").and_then(|(ms, _)| number(ms))?;
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

/// A `powermetrics` that runs beside what is measured.
pub struct Meter {
    samples: Receiver<Sample>,
}

impl Meter {
    /// Starts sampling, or says why it cannot.
    pub fn start() -> Result<Self, String> {
        Self::of(command()?)
    }

    fn of(mut command: Command) -> Result<Self, String> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|e| format!("powermetrics did not start: {e}"))?;
        let (send, samples) = mpsc::channel();
        thread::spawn(move || read(child, |sample| send.send(sample).is_ok()));
        Ok(Self { samples })
    }

    /// Stops sampling, once a period that began before now is told.
    pub fn stop(self) -> Energy {
        let now = Instant::now();
        let mut samples = Vec::new();
        // A block is whole when the next one begins, so the sample that reaches beyond now comes a period later.
        while let Some(left) = PATIENCE.checked_sub(now.elapsed()) {
            let Ok(sample) = self.samples.recv_timeout(left) else { break };
            let late = sample.span.end > now;
            samples.push(sample);
            if late {
                break;
            }
        }
        Energy { samples }
    }
}

/// Hands samples over until nobody takes them. A process that belongs to root cannot be stopped by others; it ends by itself when
/// nobody reads what it writes.
fn read(mut child: Child, mut take: impl FnMut(Sample) -> bool) {
    if let Some(text) = child.stdout.take() {
        let mut reader = Reader::default();
        let mut wanted = true;
        for line in BufReader::new(text).lines().map_while(Result::ok) {
            wanted = reader.line(&line, Instant::now()).is_none_or(&mut take);
            if !wanted {
                break;
            }
        }
        if let (true, Some(last)) = (wanted, reader.end()) {
            take(last);
        }
    }
    // Its exit code says nothing that its samples do not.
    let _ = child.wait();
}

/// What was sampled.
pub struct Energy {
    samples: Vec<Sample>,
}

impl Energy {
    /// Joules over all these spans together, by rail, as JSON; `None` unless samples cover them.
    pub fn joules(&self, spans: &[Span]) -> Option<Json> {
        let whole: f64 = spans.iter().map(|s| s.length().as_secs_f64()).sum();
        let (mut covered, mut joules) = (0.0, [Some(0.0); RAILS.len()]);
        for (span, sample) in spans.iter().flat_map(|span| self.samples.iter().map(move |sample| (span, sample))) {
            let seconds = span.shared(&sample.span).as_secs_f64();
            if seconds == 0.0 {
                continue;
            }
            covered += seconds;
            for (sum, mw) in joules.iter_mut().zip(sample.milliwatts) {
                *sum = sum.zip(mw).map(|(sum, mw)| sum + mw * 1e-3 * seconds);
            }
        }
        if whole == 0.0 || covered < LEAST_COVERED * whole || joules.iter().all(Option::is_none) {
            return None;
        }
        let rail = |((_, name), joules): (&(&str, &str), Option<f64>)| {
            // The samples cover nearly all of it; the rest is taken to be alike.
            let joules = joules.map(|j| j * whole / covered);
            ((*name).to_owned(), joules.map_or("not measured".into(), |j| json!(j)))
        };
        Some(Json::Object(RAILS.iter().zip(joules).map(rail).collect()))
    }
}

/// How `powermetrics` is run here, or why it cannot be.
pub fn command() -> Result<Command, String> {
    if !cfg!(target_os = "macos") {
        return Err("powermetrics is a part of macOS".to_owned());
    }
    let says = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let root = says("/usr/bin/id", &["-u"]).as_deref() == Some("0");
    if !root && says("/usr/bin/sudo", &["-n", "true"]).is_none() {
        return Err("powermetrics is root's; run `sudo -v` before, or this as root".to_owned());
    }
    let mut command = Command::new(if root { "/usr/bin/powermetrics" } else { "/usr/bin/sudo" });
    if !root {
        command.args(["-n", "/usr/bin/powermetrics"]);
    }
    let period = PERIOD.as_millis().to_string();
    command.args(["--samplers", "cpu_power,gpu_power,ane_power", "-f", "text", "-b", "1", "-i", &period]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two periods, written for this test after public descriptions of the form.
    const TEXT: &str = "\
Machine model: Mac16,5
OS version: 24A335

*** Sampled system activity (Mon Jan  6 10:00:00 2025 +0000) (200.00ms elapsed) ***

**** Processor usage ****

E-Cluster HW active frequency: 1020 MHz
CPU 0 active residency:  10.51%
CPU Power: 500 mW
GPU Power: 40 mW
ANE Power: 3000 mW
Combined Power (CPU + GPU + ANE): 3540 mW

**** GPU usage ****

GPU HW active frequency: 338 MHz
GPU Power: 41 mW

*** Sampled system activity (Mon Jan  6 10:00:00 2025 +0000) (400.00ms elapsed) ***

CPU Power: 1000 mW
GPU Power: nonsense
ANE Power: 0 mW
";

    fn samples(text: &str, begin: Instant) -> Vec<Sample> {
        let (mut reader, mut now) = (Reader::default(), begin);
        let mut samples: Vec<Sample> = Vec::new();
        for line in text.lines() {
            now += elapsed(line).unwrap_or_default();
            samples.extend(reader.line(line, now));
        }
        samples.extend(reader.end());
        samples
    }

    #[test]
    fn blocks_are_read_and_what_they_do_not_say_is_not_zero() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let span = |start, end| Span { start: at(start), end: at(end) };
        let samples = samples(TEXT, begin);
        let expected = [
            Sample { span: span(0, 200), milliwatts: [Some(500.0), Some(40.0), Some(3000.0)] },
            Sample { span: span(200, 600), milliwatts: [Some(1000.0), None, Some(0.0)] },
        ];
        assert_eq!(samples, expected);
        let energy = Energy { samples };
        let near = |v: &Json, joules: f64| assert!((v.as_f64().unwrap() - joules).abs() < 1e-9, "{v} {joules}");
        // Half of the first period; then all of it and a quarter of the second, of whose GPU nothing was said.
        let first = energy.joules(&[span(100, 200)]).unwrap();
        near(&first["cpu"], 0.05);
        near(&first["gpu"], 0.004);
        near(&first["ane"], 0.3);
        let both = energy.joules(&[span(0, 200), span(300, 400)]).unwrap();
        near(&both["cpu"], 0.2);
        near(&both["ane"], 0.6);
        assert_eq!(both["gpu"], "not measured");
        // Beyond what was sampled, by little and by much.
        near(&energy.joules(&[span(200, 610)]).unwrap()["cpu"], 0.41);
        assert_eq!(energy.joules(&[span(500, 700)]), None);
        assert_eq!(energy.joules(&[]), None);
        assert_eq!(Energy { samples: Vec::new() }.joules(&[span(0, 1)]), None);
    }

    #[test]
    fn lines_that_are_none_of_the_form_begin_nothing() {
        for line in
            ["*** Sampled system activity", "*** Sampled system activity (-1ms elapsed) ***", "CPU Power: 5 mW", ""]
        {
            assert_eq!(samples(line, Instant::now()), [], "{line}");
        }
        let huge = format!("*** Sampled system activity (1e300ms elapsed) ***\n{TEXT}");
        assert_eq!(samples(&huge, Instant::now()).len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_process_is_listened_to_until_its_sample_reaches_the_end_and_then_left_alone() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Meter::of(command).unwrap()
        };
        // It would go on for ever.
        let endless = "while :; do echo '*** Sampled system activity (x) (50.00ms elapsed) ***'; echo 'ANE Power: 100 mW'; \
                       sleep 0.05; done";
        let meter = shell(endless);
        let start = Instant::now();
        thread::sleep(Duration::from_millis(100));
        let stop = Instant::now();
        let energy = meter.stop();
        assert!(energy.samples.iter().any(|s| s.span.end > stop));
        assert!(energy.samples.iter().all(|s| s.milliwatts == [None, None, Some(100.0)] && s.span.end > start));
        // One that refuses at once, and one that is not there.
        assert!(shell("exit 1").stop().samples.is_empty());
        assert!(Meter::of(Command::new("/nowhere/powermetrics")).is_err());
    }
}
