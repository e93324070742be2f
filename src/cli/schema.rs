//! `spendgate schema tiers|prices`

use super::say;

const TIERS: &str = include_str!("../../schemas/tiers.schema.json");
const PRICES: &str = include_str!("../../schemas/prices.schema.json");

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum File {
    Tiers,
    Prices,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file that the schema describes.
    file: File,
}

/// Prints the JSON Schema by which editors complete and check a file.
pub fn run(args: &Args) {
    say(match args.file {
        File::Tiers => TIERS.trim_end(),
        File::Prices => PRICES.trim_end(),
    });
}
