//! `spendgate prices …`

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Subcommand;

use super::{Misconfigured, say};
use crate::domain::{litellm, prices_file};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the community's map of prices (`LiteLLM`'s), and write it to standard output as a prices.yaml.
    Import {
        /// The `model_prices_and_context_window.json`.
        file: PathBuf,
    },
}

pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::Import { file } = command;
    let text = std::fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    let imported = litellm::import(&text).map_err(|why| Misconfigured(format!("{}: {why}", file.display())))?;
    prices_file::read(&imported.text).map_err(|problems| anyhow!("{}: what came of it is refused: {problems:?}", file.display()))?;
    say(imported.text.trim_end());
    let mut told = format!("{} models; {} left out, since they have no price for tokens", imported.models, imported.left_out);
    if 0 < imported.rounded {
        told += &format!("; {} prices rounded to nine decimals", imported.rounded);
    }
    if !imported.free.is_empty() {
        told += &format!("; left out too, since the map says they cost nothing: {}", imported.free.join(", "));
    }
    // Nobody is left to be told if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{told}");
    Ok(())
}
