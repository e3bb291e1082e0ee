//! `quorumail mailbox import`.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
    progress::Bar,
};
use crate::{
    import::{
        self, ImportError, ImportProgress, ImportRequest, Imported, Planned, Source,
        maildir::Maildir,
        mbox::Mbox,
        server::{Account, Login, Security, Server},
    },
    probe,
};

/// Longest secret in a file, in bytes.
const MAX_SECRET: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Address of the mailbox.
    address: String,
    #[command(flatten)]
    from: From,
    /// Name to log in with at the other server [default: the address].
    #[arg(long, value_name = "NAME", requires = "from_imap")]
    user: Option<String>,
    /// File with the password at the other server; `-`: standard input.
    #[arg(long, value_name = "FILE", requires = "from_imap", conflicts_with = "token_file")]
    password_file: Option<PathBuf>,
    /// File with an OAuth 2.0 access token for the other server; `-`: standard input.
    #[arg(long, value_name = "FILE", requires = "from_imap")]
    token_file: Option<PathBuf>,
    /// How the connection to the other server is protected.
    #[arg(long, value_enum, default_value_t = Protection::Tls, requires = "from_imap")]
    security: Protection,
    /// PEM file with the authorities of the other server, or with its very certificate [default: the authorities that this
    /// machine trusts].
    #[arg(long, value_name = "FILE", requires = "from_imap")]
    ca_file: Option<PathBuf>,
    /// Only this folder, by its name where the mail comes from; may be given again.
    #[arg(long = "folder", value_name = "FOLDER")]
    folders: Vec<String>,
    /// Puts everything below this folder.
    #[arg(long, value_name = "FOLDER")]
    under: Option<String>,
    /// Shows the folders that would be imported, and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct From {
    /// A Maildir with its folders.
    #[arg(long, value_name = "DIR")]
    from_maildir: Option<PathBuf>,
    /// An mbox file, or a directory with one for each folder.
    #[arg(long, value_name = "PATH")]
    from_mbox: Option<PathBuf>,
    /// A mailbox of another server, which is read by IMAP and not changed.
    #[arg(long, value_name = "HOST[:PORT]")]
    from_imap: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protection {
    /// TLS from the start, port 993.
    Tls,
    /// TLS after STARTTLS, port 143.
    Starttls,
    /// None, port 143: password and mail can be read on the way.
    None,
}

impl std::convert::From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Request(text) => Self::Usage(text),
            other => Self::Failed(other.to_string()),
        }
    }
}

pub(super) async fn run(target: &Target, format: Format, args: &ImportArgs) -> Result<(), Failure> {
    let mut source = args.source()?;
    let request = ImportRequest {
        address: args.address.clone(),
        folders: args.folders.clone(),
        under: args.under.as_ref().map(|under| under.trim_end_matches('/').to_owned()),
    };
    if args.dry_run {
        let planned = import::plan(source.as_mut(), &request).await?;
        return output::print(format, &planned, |planned| plan_table(planned));
    }
    let admin = target.connect().await?;
    let bar = Bar::new();
    let show = |now: &ImportProgress| {
        bar.set(now.bytes, now.total_bytes, format!("{}: {} messages", now.folder, now.messages));
    };
    let imported = import::import(&admin, source.as_mut(), &request, &show).await;
    bar.clear();
    let (imported, elapsed) = (imported?, bar.elapsed());
    output::print(format, &imported, |imported| text(imported, elapsed.as_secs_f64()))?;
    match imported.problem_count {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} things could not be imported; see above"))),
    }
}

fn plan_table(planned: &[Planned]) -> String {
    let rows = planned.iter().map(|folder| {
        [
            folder.from.clone(),
            folder.to.clone(),
            folder.messages.map_or_else(|| "?".to_owned(), |messages| messages.to_string()),
            folder.bytes.map_or_else(|| "?".to_owned(), output::bytes),
        ]
    });
    output::table(["FROM", "TO", "MESSAGES", "SIZE"], rows)
}

fn text(imported: &Imported, seconds: f64) -> String {
    let mut text = format!(
        "{} messages ({}) of {} folders in {seconds:.1} s",
        imported.messages,
        output::bytes(imported.bytes),
        imported.folders,
    );
    if imported.already_there > 0 {
        text += &format!("; {} were imported before", imported.already_there);
    }
    text.push('\n');
    for problem in &imported.problems {
        text += &format!("{problem}\n");
    }
    text
}

impl ImportArgs {
    fn source(&self) -> Result<Box<dyn Source>, Failure> {
        Ok(match (&self.from.from_maildir, &self.from.from_mbox, &self.from.from_imap) {
            (Some(dir), ..) => Box::new(Maildir::new(dir.clone())),
            (_, Some(path), _) => Box::new(Mbox::new(path.clone())),
            (.., Some(place)) => Box::new(Server::new(self.account(place)?)),
            (None, None, None) => {
                return Err(Failure::Usage("say --from-maildir, --from-mbox or --from-imap".to_owned()));
            }
        })
    }

    fn account(&self, place: &str) -> Result<Account, Failure> {
        let (security, port) = match self.security {
            Protection::Tls => (Security::Tls, 993),
            Protection::Starttls => (Security::StartTls, 143),
            Protection::None => (Security::None, 143),
        };
        let (host, port) = host_port(place, port)?;
        let login = match (&self.password_file, &self.token_file) {
            (Some(file), _) => Login::Password(secret(file)?),
            (None, Some(file)) => Login::Token(secret(file)?),
            (None, None) => {
                let what = "say --password-file or --token-file; `-` reads standard input";
                return Err(Failure::Usage(what.to_owned()));
            }
        };
        let user = self.user.clone().unwrap_or_else(|| self.address.clone());
        let (roots, pinned) = self.trusted()?;
        Ok(Account { host, port, security, roots, pinned, user, login })
    }

    fn trusted(&self) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), Failure> {
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path)
                .map_err(|error| Failure::Failed(format!("failed to read {}: {error}", path.display())))?;
            let roots =
                probe::roots(&pem).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
            return Ok((roots, CertificateDer::pem_slice_iter(&pem).flatten().collect()));
        }
        let mut roots = RootCertStore::empty();
        if self.security != Protection::None {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let text = "this machine trusts no certificate authorities; install ca-certificates, or say --ca-file";
                return Err(Failure::Failed(text.to_owned()));
            }
        }
        Ok((roots, Vec::new()))
    }
}

/// `host`, `host:port`, `[address]:port` or an IPv6 address.
fn host_port(text: &str, default: u16) -> Result<(String, u16), Failure> {
    let wrong =
        || Failure::Usage(format!("{text:?} is no host: write imap.example.org or imap.example.org:993"));
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        None if text.matches(':').count() > 1 => (text, None),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Ok(default), |port| port.parse().map_err(|_| wrong()))?;
    if host.is_empty() || host.contains(['/', '@']) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

/// The first line of a file.
fn secret(path: &Path) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("failed to read {}: {error}", path.display()));
    let mut text = String::new();
    match path.as_os_str() == "-" {
        true => io::stdin().lock().take(MAX_SECRET).read_to_string(&mut text),
        false => std::fs::File::open(path).map_err(failed)?.take(MAX_SECRET).read_to_string(&mut text),
    }
    .map_err(failed)?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(Failure::Usage(format!("{} is empty", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_with_and_without_a_port() {
        for (text, host, port) in [
            ("imap.example.org", "imap.example.org", 993),
            ("imap.example.org:1993", "imap.example.org", 1993),
            ("[::1]:1143", "::1", 1143),
            ("[::1]", "::1", 993),
            ("::1", "::1", 993),
        ] {
            assert_eq!(host_port(text, 993).unwrap(), (host.to_owned(), port));
        }
        for text in ["", ":993", "imaps://a", "a@b", "a:b", "[::1]x"] {
            assert!(matches!(host_port(text, 993), Err(Failure::Usage(_))), "{text}");
        }
    }

    #[test]
    fn a_secret_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, " a secret \r\nmore\n").unwrap();
        assert_eq!(secret(&path).unwrap(), " a secret ");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(secret(&path), Err(Failure::Usage(_))));
    }
}
