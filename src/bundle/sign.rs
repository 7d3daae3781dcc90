//! Signing: minisign's secret keys, and putting a signature into a bundle.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::keys::{Keys, SIGNATURE_LIMIT_BYTES, Signature};
use super::{Bundle, pack};
use crate::model::Manifest;
use crate::{Doing, Error, Result, sys};

/// A secret key that is ready to sign.
pub struct Signer {
    secret: minisign::SecretKey,
    /// The public half, out of the same file.
    public: minisign_verify::PublicKey,
}

/// Length of a secret key's bytes, and where its key number, its public half and its checksum are: "Ed", "Sc" or
/// two zero bytes, "B2", salt (32 bytes), two limits (16), key number (8), secret and public half (32 each),
/// checksum (32). Source: minisign's "Secret key format".
const SECRET_LEN: usize = 158;
const KEY_NUMBER: std::ops::Range<usize> = 54..62;
const PUBLIC_HALF: std::ops::Range<usize> = 94..126;
const CHECKSUM: std::ops::Range<usize> = 126..158;

impl Signer {
    /// Reads a secret key as `minisign -G` writes it, encrypted or (`-W`) not.
    ///
    /// Without a password an encrypted key asks for one on the terminal, if there is one.
    ///
    /// # Errors
    /// `Failed`, naming the file, if it is no secret key or the password is wrong; `Usage` if a password is needed
    /// and cannot be asked for.
    pub fn load(path: &Path, password: Option<String>) -> Result<Self> {
        let text = sys::file::read(path, SIGNATURE_LIMIT_BYTES)?;
        let text = String::from_utf8_lossy(&text);
        let doing = || format!("secret key {}", path.display());
        let said = |e: minisign::PError| Error::failed(e.to_string()).within(doing());
        let bytes = text.lines().nth(1).and_then(|line| STANDARD.decode(line).ok()).unwrap_or_default();
        if bytes.len() != SECRET_LEN {
            return Err(
                Error::failed("not a minisign secret key (two lines: comment, base64); give the one that `minisign -G` made").within(doing())
            );
        }
        let boxed = minisign::SecretKeyBox::from_string(&text).map_err(said)?;
        let secret = if bytes.get(2..4) == Some(b"Sc") {
            if password.is_none() && !sys::out::is_terminal() {
                return Err(Error::usage(format!("{} has a password; give --password-file", path.display())));
            }
            boxed.into_secret_key(password)
        } else if bytes.get(CHECKSUM) == Some(&[0; 32]) {
            // minisign 0.11 -W writes no checksum, which the crate takes for damage. `sign` sees damage as well.
            minisign::SecretKey::from_bytes(&bytes)
        } else {
            boxed.into_unencrypted_secret_key()
        }
        .map_err(said)?;
        let public = public_half(&secret.to_bytes()).doing(doing)?;
        Ok(Self { secret, public })
    }

    /// Whether `other` signs with the same key.
    pub fn is_of_same_key(&self, other: &Self) -> bool {
        self.public == other.public
    }

    /// Signs a manifest's text.
    ///
    /// # Errors
    /// `Failed` if the secret key turns out to be damaged, or the kernel has no random bytes.
    pub fn sign(&self, manifest: &Manifest, text: &[u8]) -> Result<Signature> {
        self.sign_text(text, &format!("file:manifest.toml\tversion:{}\thashed", manifest.version))
    }

    /// Signs a text. The comment is signed as well, and shown by `minisign -V`; no time is in it: nothing of ours depends on
    /// a clock.
    ///
    /// # Errors
    /// As [`Signer::sign`].
    pub fn sign_text(&self, text: &[u8], comment: &str) -> Result<Signature> {
        let signed = minisign::sign(None, &self.secret, text, Some(comment), None)
            .map_err(|e| Error::failed(e.to_string()).within("sign"))?;
        let signature = Signature::import(&signed.into_string())?;
        signature.check_fits(&self.public, text).doing(|| "sign: the secret key is damaged")?;
        Ok(signature)
    }
}

fn public_half(secret: &[u8]) -> Result<minisign_verify::PublicKey> {
    let wrong = || Error::failed("not a minisign secret key");
    let (number, half) = secret.get(KEY_NUMBER).zip(secret.get(PUBLIC_HALF)).ok_or_else(wrong)?;
    let text = STANDARD.encode([b"Ed", number, half].concat());
    minisign_verify::PublicKey::from_base64(&text).map_err(|_| wrong())
}

/// Makes a pair of keys without a password, in minisign's form.
///
/// # Errors
/// `Failed`, naming the file, if one of them exists already or cannot be written.
pub fn keygen(public: &Path, secret: &Path) -> Result<()> {
    for path in [public, secret] {
        if path.exists() || path.is_symlink() {
            return Err(Error::failed(format!("{} exists; it is not overwritten", path.display())));
        }
    }
    let said = |e: minisign::PError| Error::failed(e.to_string()).within("make a key pair");
    let pair = minisign::KeyPair::generate_unencrypted_keypair().map_err(said)?;
    let secret_text =
        pair.sk.to_box(Some("minisign secret key without a password")).map_err(said)?.into_string();
    let public_text = pair.pk.to_box().map_err(said)?.into_string();
    sys::durable::replace(public, public_text.as_bytes(), 0o644)?;
    sys::durable::replace(secret, secret_text.as_bytes(), 0o600)
}

/// A signature made elsewhere over the manifest of `bundle`, seen to be one of the key in the file `public`.
///
/// # Errors
/// `Failed`, naming the file, if it is none.
pub fn import(signature: &Path, public: &Path, manifest_text: &[u8]) -> Result<Signature> {
    let text = sys::file::read_text(signature, SIGNATURE_LIMIT_BYTES)?;
    let doing = || format!("signature {}", signature.display());
    let found = Signature::import(&text).doing(doing)?;
    Keys::load_file(public)?.check(manifest_text, std::slice::from_ref(&found)).doing(doing)?;
    Ok(found)
}

/// Adds signatures to the bundle at `path`; one by a key that signed before takes the old one's place. Reads the
/// whole bundle first: what does not fit its own manifest is not signed.
///
/// # Errors
/// `Failed`, naming the bundle, if it is damaged or cannot be written; it is then as it was.
pub fn add(path: &Path, sign: &pack::SignWith) -> Result<Vec<Signature>> {
    let mut file = sys::file::open_read(path)?;
    let doing = || format!("bundle {}", path.display());
    let mode = file.metadata().doing(doing)?.permissions().mode() & 0o7777;
    let mut bundle = Bundle::open_unchecked(BufReader::new(&file)).doing(doing)?;
    let payload_start = bundle.payload_start();
    bundle.check_all(&mut |_| ()).doing(doing)?;
    let new = sign(bundle.manifest(), bundle.manifest_text())?;
    let mut all: Vec<Signature> =
        bundle.signatures().iter().filter(|old| new.iter().all(|n| n.id() != old.id())).cloned().collect();
    all.extend(new);
    if all.len() > super::keys::SIGNATURES_MAX {
        return Err(
            Error::failed(format!("more than {} signatures", super::keys::SIGNATURES_MAX)).within(doing())
        );
    }
    let text = bundle.manifest_text().to_vec();
    drop(bundle);
    let checked_len = sys::file::len_bytes(&file).doing(doing)?;
    file.seek(SeekFrom::Start(payload_start)).doing(doing)?;
    sys::durable::replace_with(path, mode, |to: &mut File| {
        pack::head(to, &text, &all)?;
        let copied = io::copy(&mut &file, to)?;
        if copied + payload_start == checked_len {
            Ok(())
        } else {
            Err(Error::failed("it changed meanwhile"))
        }
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with minisign 0.11 (Debian 12): `minisign -GW`. It holds no checksum.
    const SECRET: &str = "untrusted comment: minisign encrypted secret key\n\
        RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAANfxAE6SdvXKsTPgH4347qWReb/TJgKqdrY\
        8SJzuaZwtKp3RJJn11PqxyY/gusW7dxe274SauHCgm0HoelWa6VdSJRrGhzBadAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";

    const MANIFEST: &str = r#"
format = 1
compatible = ["x"]
arch = "amd64"
version = "1.0.0"
release = 0
[[payload]]
name = "root"
type = "root-slot"
size = 4096
sha256 = "1111111111111111111111111111111111111111111111111111111111111111"
index_sha256 = "2222222222222222222222222222222222222222222222222222222222222222"
index_size = 128
frames_size = 10
frames_sha256 = "3333333333333333333333333333333333333333333333333333333333333333"
"#;

    fn sign_with(text: &str) -> Result<Signature> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        sys::durable::replace(&path, text.as_bytes(), 0o600).unwrap();
        Signer::load(&path, None)?.sign(&Manifest::parse(MANIFEST).unwrap(), MANIFEST.as_bytes())
    }

    #[test]
    fn a_key_of_the_real_minisign_without_password_signs() {
        assert_eq!(sign_with(SECRET).unwrap().id().to_string(), "72BD9DA41340FC35");
    }

    #[test]
    fn a_damaged_key_never_signs() {
        let line = SECRET.lines().nth(1).unwrap();
        let whole = STANDARD.decode(line).unwrap();
        // The key number is a name; the salt and the limits mean nothing without a password.
        for byte in 62..SECRET_LEN {
            let mut bad = whole.clone();
            bad[byte] ^= 0x10;
            let text = format!("untrusted comment: x\n{}\n", STANDARD.encode(bad));
            assert!(sign_with(&text).is_err(), "byte {byte}");
        }
        assert!(sign_with("untrusted comment: x\n").is_err());
        assert!(sign_with("RWQ=\nRWQ=\n").is_err());
    }
}
