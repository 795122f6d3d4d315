//! Writes packages of random programs: `random DIR COUNT`. The cross-checks give them to other people's loaders.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count] = args.as_slice() else {
        eprintln!("usage: random DIR COUNT");
        return ExitCode::from(2);
    };
    let Ok(count) = count.parse::<u64>() else {
        eprintln!("COUNT is a number, not {count:?}");
        return ExitCode::from(2);
    };
    for seed in 0..count {
        let path = Path::new(dir).join(format!("{seed}.mlpackage"));
        let result = anemone_mil::validate(anemone_mil::testing::random_program(seed))
            .map_err(|e| e.to_string())
            .and_then(|valid| anemone_mil::write(&valid, &path).map_err(|e| e.to_string()));
        if let Err(e) = result {
            eprintln!("{}: {e}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
