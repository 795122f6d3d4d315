//! The smoke gate: the answer to "write hello world in Erlang" is a program, and it says hello.
//!
//! The code comes out of the answer's fence and runs under `escript`, confined: a scratch folder that vanishes, an
//! environment of almost nothing, a limit on processor time, wall time, file sizes and output. Where the system lets us, it
//! runs in a network namespace of its own, with no interface to reach anything.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::verdict::Verdict;

/// The gate's name.
pub const NAME: &str = "smoke";

/// What the program must print.
pub const EXPECTED: &str = "Hello, World!";

/// Output beyond this is a failure, not something to hold in memory.
const MAX_OUTPUT: u64 = 64 << 10;
/// Wall time the program gets.
const MAX_TIME: Duration = Duration::from_secs(30);

/// What became of an answer.
pub struct Smoke {
    /// Passed, failed, or skipped for want of `escript`.
    pub verdict: Verdict,
    /// One line.
    pub message: String,
}

/// Takes the code out of an answer and runs it.
pub fn run_answer(answer: &str) -> Smoke {
    let Some(code) = fenced(answer) else {
        return Smoke { verdict: Verdict::Failed, message: "the answer has no fenced code".into() };
    };
    let Some(escript) = find_program("escript") else {
        return Smoke {
            verdict: Verdict::Skipped,
            message: "no escript on this machine; install Erlang to run the answer".into(),
        };
    };
    match execute(&escript, code) {
        Ok(printed) if printed.trim() == EXPECTED => {
            Smoke { verdict: Verdict::Passed, message: format!("escript printed {EXPECTED}") }
        }
        Ok(printed) => {
            let printed: String = printed.chars().take(200).collect();
            Smoke { verdict: Verdict::Failed, message: format!("escript printed {printed:?}, expected {EXPECTED:?}") }
        }
        Err(reason) => Smoke { verdict: Verdict::Failed, message: reason },
    }
}

/// The content of the first code fence.
pub fn fenced(answer: &str) -> Option<&str> {
    let (_, rest) = answer.split_once("```")?;
    // The rest of the fence's line names the language.
    let (_, code) = rest.split_once('\n')?;
    Some(code.split_once("```").map_or(code, |(code, _)| code))
}

/// The first file of that name in the folders of `PATH`; whether it may be executed is not looked at.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.is_file())
}

/// `escript` skips the first line of a file; a module needs an entry point under the name it exports.
fn script(code: &str) -> String {
    let body = code.trim_start();
    if body.starts_with("#!") {
        return body.to_owned();
    }
    let mut text = format!("#!/usr/bin/env escript\n{body}\n");
    if !body.contains("main(")
        && let Some(entry) = exported_entry(body)
    {
        text.push_str(&format!("\nmain(_) -> {entry}().\n"));
    }
    text
}

/// The first function without arguments that a module exports: `start` of `-export([start/0]).`
fn exported_entry(code: &str) -> Option<&str> {
    let (_, exports) = code.split_once("-export([")?;
    let (exports, _) = exports.split_once(']')?;
    exports.split(',').find_map(|f| f.trim().strip_suffix("/0"))
}

fn execute(escript: &Path, code: &str) -> Result<String, String> {
    let fault = |e: std::io::Error| format!("the smoke test could not be set up: {e}");
    let folder = tempfile::tempdir().map_err(fault)?;
    let file = folder.path().join("answer.escript");
    fs::write(&file, script(code)).map_err(fault)?;
    let limits = "ulimit -t 20 -f 64 -c 0; ";
    let run = |isolate: &str| {
        Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{limits}exec {isolate} \"$0\" \"$1\""))
            .arg(escript)
            .arg(&file)
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let isolate = match can_unshare() {
        true => "unshare --user --map-root-user --net",
        false => "",
    };
    wait(run(isolate).map_err(fault)?)
}

/// Whether a process may have a network namespace of its own here.
fn can_unshare() -> bool {
    let probe =
        Command::new("unshare").args(["--user", "--map-root-user", "--net", "true"]).stderr(Stdio::null()).status();
    probe.is_ok_and(|s| s.success())
}

/// What the child printed; an error where it failed, took too long or said too much.
fn wait(mut child: Child) -> Result<String, String> {
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // A pipe that breaks ends the output; what came until then is judged.
            let _ = pipe.map(|p| p.take(MAX_OUTPUT).read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(child.stdout.take().map(|p| Box::new(p) as _));
    let err = read(child.stderr.take().map(|p| Box::new(p) as _));
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if start.elapsed() > MAX_TIME => {
                let _ = child.kill();
                let _ = child.wait();
                break Err(format!("the program ran longer than {} s", MAX_TIME.as_secs()));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => break Err(format!("the program could not be waited for: {e}")),
        }
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    let status = status?;
    match status.success() {
        true => Ok(out),
        false => Err(format!("escript ended with {status}: {}", err.trim().lines().next().unwrap_or("no message"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_out_of_its_fence() {
        assert_eq!(fenced("Sure:\n```erlang\nmain(_) -> ok.\n```\nThat is it."), Some("main(_) -> ok.\n"));
        assert_eq!(fenced("no code"), None);
    }

    #[test]
    fn an_answer_that_says_something_else_fails() {
        if find_program("escript").is_none() {
            assert_eq!(run_answer("```erlang\nmain(_) -> ok.\n```").verdict, Verdict::Skipped);
            return;
        }
        let hello = "```erlang\n#!/usr/bin/env escript\nmain(_) -> io:format(\"Hello, World!~n\").\n```";
        assert_eq!(run_answer(hello).verdict, Verdict::Passed);
        let module =
            "```erlang\n-module(hello).\n-export([start/0]).\n\nstart() -> io:format(\"Hello, World!~n\", []).\n```";
        let run = run_answer(module);
        assert_eq!(run.verdict, Verdict::Passed, "{}", run.message);
        let other = "```erlang\nmain(_) -> io:format(\"Goodbye~n\").\n```";
        assert_eq!(run_answer(other).verdict, Verdict::Failed);
        assert_eq!(run_answer("```python\nprint(1)\n```").verdict, Verdict::Failed);
    }
}
