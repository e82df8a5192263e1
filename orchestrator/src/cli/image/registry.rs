//! A registry, as the OCI distribution specification 1.1 has it, for pulling.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::Value;
use sha2::{Digest, Sha256};
use skerry_images::chain::live::Progress;
use skerry_images::store::Name;
use ureq::Body;
use ureq::http::Response;

use super::Failure;
use super::fetch::{FetchError, Fetcher, Header};
use crate::runtime::container::fits_here;

/// What is asked for if nothing says which registry.
const HUB: &str = "docker.io";
const KINDS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                     application/vnd.docker.distribution.manifest.list.v2+json, \
                     application/vnd.docker.distribution.manifest.v2+json";
/// Layers of the largest image, as elsewhere.
const LAYERS: usize = 127;
/// Bytes of the largest image.
const LARGEST: u64 = 1 << 40;
/// Bytes of the longest file with logins.
const LOGINS: u64 = 1 << 20;

/// An image of a registry.
#[derive(Debug, Clone)]
pub struct Reference {
    registry: String,
    repository: String,
    /// A tag, or a digest.
    version: String,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Reference, String> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|d| hexadecimal(d).is_none()) {
            return Err(format!(
                "{text:?}: a digest is sha256: and 64 hexadecimal digits"
            ));
        }
        let name: Name = rest
            .parse()
            .map_err(|e: skerry_images::store::StoreError| e.to_string())?;
        let name = name.to_string();
        let (path, tag) = name.rsplit_once(':').unwrap_or((&name, "latest"));
        let (registry, repository) = match path.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                (host.to_owned(), path.to_owned())
            }
            Some(_) => (HUB.to_owned(), path.to_owned()),
            None => (HUB.to_owned(), format!("library/{path}")),
        };
        Ok(Reference {
            registry,
            repository,
            version: digest.unwrap_or(tag).to_owned(),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.version.contains(':') { '@' } else { ':' };
        write!(
            f,
            "{}/{}{mark}{}",
            self.registry, self.repository, self.version
        )
    }
}

impl Reference {
    /// The name that it has in the store if none is said.
    pub fn name(&self) -> Result<Name, Failure> {
        match self.version.contains(':') {
            true => Err(Failure::Asked(
                "a digest is no name: say what the image is called in the store, with --name"
                    .into(),
            )),
            false => Ok(self.to_string().parse()?),
        }
    }

    /// Where its registry answers.
    fn host(&self) -> &str {
        match self.registry.as_str() {
            HUB => "registry-1.docker.io",
            other => other,
        }
    }
}

/// Who asks.
#[derive(Clone)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl Login {
    /// That for a registry, of a file of Docker's, if it has one.
    pub fn found(path: &Path, reference: &Reference) -> Result<Option<Login>, Failure> {
        let failed = |source| Failure::System {
            what: "read",
            path: path.into(),
            source,
        };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > LOGINS {
            return Err(failed(std::io::Error::other("it is too long")));
        }
        let text = std::fs::read(path).map_err(failed)?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
        let names = match reference.registry.as_str() {
            HUB => vec!["https://index.docker.io/v1/", HUB],
            other => vec![other],
        };
        let auth = names
            .iter()
            .find_map(|name| config["auths"][name]["auth"].as_str());
        let Some(auth) = auth else {
            return Ok(None);
        };
        let plain = STANDARD
            .decode(auth)
            .ok()
            .and_then(|b| String::from_utf8(b).ok());
        let login = plain.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) = login.ok_or_else(|| {
            failed(std::io::Error::other(format!(
                "its login for {} cannot be understood",
                reference.registry
            )))
        })?;
        Ok(Some(Login {
            user: user.to_owned(),
            password: password.to_owned(),
        }))
    }

    fn header(&self) -> Header {
        let both = STANDARD.encode(format!("{}:{}", self.user, self.password));
        ("Authorization", format!("Basic {both}"))
    }
}

/// A registry, asked for one image.
pub struct Registry<'a> {
    fetcher: Fetcher,
    reference: &'a Reference,
    base: String,
    login: Option<Login>,
    /// What it wants to see with each request.
    authorization: Option<Header>,
}

impl<'a> Registry<'a> {
    /// That of an image.
    pub fn new(reference: &'a Reference, plain: bool, login: Option<Login>) -> Registry<'a> {
        let scheme = if plain { "http" } else { "https" };
        Registry {
            fetcher: Fetcher::new(),
            reference,
            base: format!(
                "{scheme}://{}/v2/{}",
                reference.host(),
                reference.repository
            ),
            login,
            authorization: None,
        }
    }

    /// Makes a layout of the image in a folder. Blobs that are there already are not asked for.
    pub fn pull(&mut self, folder: &Path, progress: &Progress) -> Result<(), Failure> {
        let (manifest, digest) = self.manifest()?;
        let parsed = ImageManifest::from_reader(&manifest[..])
            .map_err(|e| self.odd("a manifest that cannot be understood", e))?;
        let mut blobs: Vec<&Descriptor> = vec![parsed.config()];
        blobs.extend(parsed.layers());
        if blobs.len() > LAYERS + 1 {
            return Err(self.odd("an image of too many layers", blobs.len()));
        }
        let size = blobs
            .iter()
            .map(|blob| blob.size())
            .try_fold(0, u64::checked_add);
        let size = size.filter(|size| *size <= LARGEST);
        progress.expect(size.ok_or_else(|| self.odd("an image of too many bytes", LARGEST))?);
        let place = folder.join("blobs/sha256");
        std::fs::create_dir_all(&place).map_err(written(&place))?;
        for blob in blobs {
            let text = blob.digest().to_string();
            let digits = hexadecimal(&text);
            let digits = digits.ok_or_else(|| self.odd("a digest that is no sha256", &text))?;
            let (whole, part) = (place.join(digits), place.join(format!("{digits}.part")));
            if whole.exists() {
                progress.step(blob.size())?;
                continue;
            }
            let url = format!("{}/blobs/{text}", self.base);
            let headers: Vec<Header> = self.authorization.clone().into_iter().collect();
            let fetch = || {
                let size = Some(blob.size());
                self.fetcher.download(&url, &headers, &part, size, progress)
            };
            let resumed = part.exists();
            fetch()?;
            // What an earlier attempt left may be anything after a power cut: then it is of no use.
            if resumed && digest_of(&part).map_err(written(&part))? != digits {
                std::fs::remove_file(&part).map_err(written(&part))?;
                fetch()?;
            }
            std::fs::rename(&part, &whole).map_err(written(&whole))?;
        }
        std::fs::write(place.join(&digest), &manifest).map_err(written(folder))?;
        let kind = parsed.media_type().as_ref().map(ToString::to_string);
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": kind.unwrap_or("application/vnd.oci.image.manifest.v1+json".into()),
                "digest": format!("sha256:{digest}"),
                "size": manifest.len(),
            }],
        });
        let files = [
            ("index.json", index.to_string()),
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
        ];
        for (name, text) in files {
            std::fs::write(folder.join(name), text).map_err(written(folder))?;
        }
        Ok(())
    }

    /// The manifest for this machine, and its digest.
    fn manifest(&mut self) -> Result<(Vec<u8>, String), Failure> {
        let mut version = self.reference.version.clone();
        // An index, and what it names.
        for _ in 0..2 {
            let url = format!("{}/manifests/{version}", self.base);
            let answer = self.ask(&url)?;
            let bytes = Fetcher::document(&url, answer)?;
            let digest = digits_of(&Sha256::digest(&bytes));
            if hexadecimal(&version).is_some_and(|asked| asked != digest) {
                return Err(self.odd("something else than the digest says", version));
            }
            let json: Value = serde_json::from_slice(&bytes)?;
            if json.get("manifests").is_none() {
                return Ok((bytes, digest));
            }
            let index = ImageIndex::from_reader(&bytes[..])
                .map_err(|e| self.odd("an index that cannot be understood", e))?;
            let fitting = index.manifests().iter().find(|one| fits_here(one));
            let fitting = fitting
                .ok_or_else(|| self.odd("no image for this machine", std::env::consts::ARCH))?;
            version = fitting.digest().to_string();
        }
        Err(self.odd("an index of indexes", version))
    }

    /// Asks, and asks again with what the registry wants to see.
    fn ask(&mut self, url: &str) -> Result<Response<Body>, Failure> {
        let mut headers: Vec<Header> = vec![("Accept", KINDS.to_owned())];
        headers.extend(self.authorization.clone());
        let answer = self.fetcher.ask(url, &headers)?;
        if answer.status().as_u16() != 401 || self.authorization.is_some() {
            return Ok(answer);
        }
        let wanted = answer.headers().get("www-authenticate");
        let wanted = wanted
            .and_then(|text| text.to_str().ok())
            .unwrap_or("")
            .to_owned();
        self.authorization = match wanted.split_once(' ') {
            Some((kind, fields)) if kind.eq_ignore_ascii_case("bearer") => {
                Some(self.token(fields)?)
            }
            Some((kind, _)) if kind.eq_ignore_ascii_case("basic") => {
                self.login.as_ref().map(Login::header)
            }
            _ => None,
        };
        match self.authorization.clone() {
            Some(authorization) => {
                headers.push(authorization);
                Ok(self.fetcher.ask(url, &headers)?)
            }
            None => Ok(answer),
        }
    }

    /// A token from whom the registry names.
    fn token(&self, fields: &str) -> Result<Header, Failure> {
        let field = |name: &str| {
            let at = fields.find(&format!("{name}=\""))? + name.len() + 2;
            fields[at..].split('"').next()
        };
        let realm = field("realm").ok_or_else(|| self.odd("no realm for a token", fields))?;
        // A password is for https alone, unless the registry itself is asked without.
        if !realm.starts_with("https://") && self.base.starts_with("https://") {
            return Err(self.odd("a realm for tokens that is not https", realm));
        }
        let mut url = format!(
            "{realm}?scope=repository:{}:pull",
            self.reference.repository
        );
        if let Some(service) = field("service") {
            url.push_str(&format!("&service={}", service.replace(' ', "%20")));
        }
        let headers: Vec<Header> = self.login.iter().map(Login::header).collect();
        let answer = self.fetcher.ask(&url, &headers)?;
        let answer: Value = serde_json::from_slice(&Fetcher::document(&url, answer)?)?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        let token = token.ok_or_else(|| self.odd("no token", &url))?;
        Ok(("Authorization", format!("Bearer {token}")))
    }

    fn odd(&self, what: &str, which: impl fmt::Display) -> Failure {
        Failure::Fetch(FetchError::Odd {
            url: self.reference.to_string(),
            what: format!("{what}: {which}"),
        })
    }
}

/// The digits of a file's sha256.
fn digest_of(path: &Path) -> std::io::Result<String> {
    let mut sum = Sha256::new();
    let (mut file, mut buffer) = (File::open(path)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digits_of(&sum.finalize())),
            n => sum.update(&buffer[..n]),
        }
    }
}

fn digits_of(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn written(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::System {
        what: "write",
        path,
        source,
    }
}

/// The digits of a sha256 digest.
fn hexadecimal(digest: &str) -> Option<&str> {
    let digits = digest.strip_prefix("sha256:")?;
    let plain = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (digits.len() == 64 && digits.bytes().all(plain)).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_what_container_tools_take() {
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("me/it:1", "docker.io/me/it:1"),
            ("localhost/it", "localhost/it:latest"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!(reference.to_string(), whole);
        }
        let digest = format!("quay.io/a@sha256:{}", "0".repeat(64));
        let reference: Reference = digest.parse().expect("a reference");
        assert_eq!(reference.to_string(), digest);
        assert!(reference.name().is_err());
        for text in ["", "a@sha256:1", "a@b", "../x", "http://a/b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
