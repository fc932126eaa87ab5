//! The binary: the command line, and the doors at which an instance answers.

fn main() {
    tidegate::cli::main(tidegate::api::routes())
}
