//! The command line: everything is in [`quorumail_operator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    quorumail_operator::cli::main()
}
