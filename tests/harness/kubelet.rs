//! Volumes of ConfigMaps and Secrets, written as the kubelet writes them.
//!
//! The files of one version lie in a hidden directory of their own, `..data` is a link to it that
//! is replaced at once, and every file is a link through `..data`. A volume of an object that does
//! not exist is empty.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// A mounted ConfigMap or Secret.
pub struct Volume {
    path: PathBuf,
    versions: usize,
}

impl Volume {
    /// Mounts it at `path`; its object does not exist yet.
    pub fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mut volume = Self { path, versions: 0 };
        volume.publish(&[]);
        volume
    }

    /// The object has these keys now.
    pub fn publish(&mut self, keys: &[(&str, &str)]) {
        self.versions += 1;
        let version = format!("..2026_11_25_00_00_00.{}", self.versions);
        fs::create_dir(self.path.join(&version)).unwrap();
        for (key, text) in keys {
            fs::write(self.path.join(&version).join(key), text).unwrap();
        }
        let before = fs::read_link(self.path.join("..data")).ok();
        symlink(&version, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        self.link(keys);
        if let Some(before) = before {
            fs::remove_dir_all(self.path.join(before)).unwrap();
        }
    }

    /// Adds the links of new keys, then removes those of keys that are gone.
    fn link(&self, keys: &[(&str, &str)]) {
        for (key, _) in keys {
            let link = self.path.join(key);
            if fs::symlink_metadata(&link).is_err() {
                symlink(PathBuf::from("..data").join(key), link).unwrap();
            }
        }
        for entry in fs::read_dir(&self.path).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("..") && keys.iter().all(|(key, _)| *key != name) {
                fs::remove_file(self.path.join(name)).unwrap();
            }
        }
    }
}
