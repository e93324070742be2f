//! Begins to listen: on an address, or on a socket in the file system.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::Misconfigured;
use crate::config::Listen;
use crate::http::serve::{Limits, Listener};

/// The owner and the group may connect.
const SOCKET_MODE: u32 = 0o660;

/// The file of a socket, which goes with it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number: somebody else's of the same name stays.
    file: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            // What is left would be replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Who comes is accepted from now on; where it is a file, what removes it in the end. The second one is where it turned out to be.
pub fn listen(setting: &str, wanted: &Listen, limits: &Limits) -> anyhow::Result<(Listener, Listen, Option<SocketFile>)> {
    match wanted {
        Listen::Tcp(address) => {
            let (listener, address) = Listener::tcp(*address, limits.send_buffer).map_err(|error| cannot_listen(setting, wanted, error))?;
            Ok((listener, Listen::Tcp(address), None))
        }
        Listen::Unix(path) => {
            replace_stale(path)?;
            let (listener, file) = bind(path).with_context(|| format!("cannot listen on {wanted}"))?;
            Ok((Listener::Unix(listener), wanted.clone(), Some(file)))
        }
    }
}

fn cannot_listen(setting: &str, wanted: &Listen, error: std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::AddrInUse {
        return anyhow!("{setting}: {wanted} is in use; choose another port, or stop what listens there");
    }
    anyhow::Error::from(error).context(format!("cannot listen on {wanted}"))
}

/// Makes way where a process that is gone left its socket. Whatever else stands there stays.
fn replace_stale(path: &Path) -> anyhow::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be looked at", path.display())),
    };
    let told = |why: &str| format!("LISTEN_ADDR: {} {why}", path.display());
    if !found.file_type().is_socket() {
        return Err(Misconfigured(told("is there and is not a socket; choose another path")).into());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(anyhow!(told("is served by another process already; stop it, or choose another path"))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("{}, which a process left behind, cannot be removed", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("whether {} is served cannot be told", path.display())),
    }
}

/// A socket comes into the world open to whom the umask lets in, so it is made in a folder that is ours alone, and moved when it is right.
fn bind(path: &Path) -> anyhow::Result<(tokio::net::UnixListener, SocketFile)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let nursery = tempfile::tempdir_in(folder).with_context(|| format!("nothing can be made in {}", folder.display()))?;
    let made = nursery.path().join("s");
    let listener = UnixListener::bind(&made)?;
    fs::set_permissions(&made, Permissions::from_mode(SOCKET_MODE))?;
    fs::rename(&made, path)?;
    let found = fs::symlink_metadata(path)?;
    listener.set_nonblocking(true)?;
    let file = SocketFile { path: path.to_owned(), file: (found.dev(), found.ino()) };
    Ok((tokio::net::UnixListener::from_std(listener)?, file))
}
