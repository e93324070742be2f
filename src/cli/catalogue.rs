//! Where tiers and prices come from.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Misconfigured;
use crate::config::Config;
use crate::domain::catalogue::Catalogue;
use crate::domain::pricing::PriceBook;
use crate::domain::yaml::Problem;
use crate::domain::{prices_file, tiers_file};

/// One of the two files that say what may be spent: in the folder where the service runs, where a setting says, or built in.
struct Described {
    setting: &'static str,
    file: &'static str,
    /// The one of the repository.
    built_in: &'static str,
}

const TIERS: Described = Described { setting: "TIERS_FILE", file: "tiers.yaml", built_in: include_str!("../../tiers.yaml") };
const PRICES: Described = Described { setting: "PRICES_FILE", file: "prices.yaml", built_in: include_str!("../../prices.yaml") };

/// Where such a text comes from.
#[derive(Debug)]
pub enum Source {
    File(PathBuf),
    BuiltIn(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::BuiltIn(file) => write!(f, "built-in {file}"),
        }
    }
}

impl Described {
    fn read(&self, path: Option<&PathBuf>) -> anyhow::Result<(String, Source)> {
        let path = match path {
            Some(path) => path.clone(),
            None if Path::new(self.file).exists() => PathBuf::from(self.file),
            None => return Ok((self.built_in.to_owned(), Source::BuiltIn(self.file))),
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Misconfigured(format!("{}: {} cannot be read: {error}", self.setting, path.display())))?;
        Ok((text, Source::File(path)))
    }
}

/// Where the tiers and the prices come from.
#[derive(Debug)]
pub struct Sources {
    pub tiers: Source,
    pub prices: Source,
}

impl Sources {
    /// The settings by which the same files are read again.
    pub fn pin(&self, config: Config) -> Config {
        let path = |source: &Source| match source {
            Source::File(path) => Some(path.clone()),
            Source::BuiltIn(_) => None,
        };
        Config { tiers_file: path(&self.tiers), prices_file: path(&self.prices), ..config }
    }
}

/// Both files, or what is wrong with one of them.
pub fn read_catalogue(config: &Config) -> anyhow::Result<(Catalogue, Sources)> {
    let (prices, prices_source) = PRICES.read(config.prices_file.as_ref())?;
    let (tiers, tiers_source) = TIERS.read(config.tiers_file.as_ref())?;
    let prices = prices_file::read(&prices).map_err(|problems| refused("prices", &prices_source, &problems))?;
    let catalogue = tiers_file::read(&tiers, prices).map_err(|problems| refused("tiers", &tiers_source, &problems))?;
    Ok((catalogue, Sources { tiers: tiers_source, prices: prices_source }))
}

fn refused(what: &str, source: &Source, problems: &[Problem]) -> Misconfigured {
    let lines: Vec<String> = problems.iter().map(|problem| format!("{source}:{problem}")).collect();
    Misconfigured(format!("the {what} are refused\n{}", lines.join("\n")))
}

/// The price book that comes with the program.
pub fn built_in_prices() -> anyhow::Result<PriceBook> {
    prices_file::read(PRICES.built_in).ok().context("the built-in prices.yaml is refused")
}

pub fn built_in_catalogue() -> anyhow::Result<Catalogue> {
    tiers_file::read(TIERS.built_in, built_in_prices()?).ok().context("the built-in tiers.yaml is refused")
}
