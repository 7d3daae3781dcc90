//! The direction of dependencies: who may use whom, read from the sources.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folder of `src/`, and the folders that its code may name. `error` and `root` belong to everybody.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sys", &[]),
    ("config", &["model", "sys"]),
    ("block", &["model", "sys"]),
    ("feature", &["model", "sys"]),
    ("contract", &["model", "feature", "sys"]),
    ("compose", &["model", "feature", "sys"]),
    ("bundle", &["model", "sys"]),
    ("preload", &["model", "bundle", "sys"]),
    ("boot", &["model", "block", "sys"]),
    ("flash", &["model", "config", "block", "boot", "bundle", "sys"]),
    ("engine", &["model", "config", "feature", "sys"]),
    ("services", &["model", "config", "feature", "contract", "compose", "engine", "sys"]),
    ("update", &["model", "boot", "block", "bundle", "sys"]),
    ("provision", &["model", "config", "block", "engine", "sys"]),
    ("init", &["model", "config", "block", "boot", "engine", "sys"]),
    (
        "cmd",
        &[
            "model",
            "sys",
            "config",
            "block",
            "feature",
            "contract",
            "compose",
            "bundle",
            "boot",
            "engine",
            "services",
            "update",
            "preload",
            "flash",
            "provision",
            "init",
            "cli",
        ],
    ),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file without its tests and comments: tests may look anywhere.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The first path segments behind `crate::`, single or in braces.
fn used(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            let mut at_name = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => {
                        names.insert(std::mem::take(&mut word));
                        at_name = true;
                        continue;
                    }
                    ':' => at_name = false,
                    c if depth == 1 && at_name && !c.is_whitespace() => word.push(c),
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            names.insert(word);
        } else {
            names.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

#[test]
fn dependencies_point_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders: BTreeSet<_> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for (folder, may_use) in MAY_USE {
        let dir = src.join(folder);
        if !dir.exists() {
            continue;
        }
        for file in sources(&dir) {
            looked_at += 1;
            for name in used(&code(&file)) {
                let ours = folders.contains(name.as_str()) || name == "cli";
                if ours && name != *folder && !may_use.contains(&name.as_str()) {
                    wrong.push(format!("{} uses {name}", file.strip_prefix(&src).unwrap().display()));
                }
            }
        }
    }
    assert!(looked_at > 30, "only {looked_at} files found");
    assert!(wrong.is_empty(), "against the direction of dependencies:\n{}", wrong.join("\n"));
}

#[test]
fn every_folder_of_src_is_in_the_table() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(src).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() && name != "sim" {
            assert!(MAY_USE.iter().any(|(folder, _)| *folder == name), "{name} has no line in MAY_USE");
        }
    }
}

#[test]
fn unsafe_code_stands_in_sys_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in sources(&src) {
        if !file.starts_with(src.join("sys")) {
            assert!(!code(&file).contains("unsafe "), "{} has unsafe code", file.display());
        }
    }
}

#[test]
fn the_reader_of_paths_sees_every_form() {
    let text = "use crate::{Error, boot::{A, B}, sys};\nuse crate::model::Slot;\nlet x = crate::cmd::y();";
    let expected = ["Error", "boot", "cmd", "model", "sys"].map(String::from);
    assert_eq!(used(text), BTreeSet::from(expected));
}
