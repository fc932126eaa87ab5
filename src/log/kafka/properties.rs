//! Values of properties that stand in files, such as secrets that an orchestrator mounts.
//!
//! F1: a value that cannot be read is an error that names property and file; no message has a value.

use std::collections::BTreeMap;

use crate::config::secret::Secret;

/// The end of a name whose value is the path of the file with the property's value.
const FILE: &str = "_file";

/// The properties with every `<property>_file` replaced by the property and the file's content, without the line
/// break at its end.
pub fn read_files(properties: &BTreeMap<String, Secret>) -> Result<BTreeMap<String, Secret>, String> {
    let mut all = BTreeMap::new();
    for (name, value) in properties {
        let Some(property) = name.strip_suffix(FILE) else {
            all.insert(name.clone(), value.clone());
            continue;
        };
        if properties.contains_key(property) {
            return Err(format!("the Kafka properties {property} and {name} are both set; leave one of them out"));
        }
        let path = value.reveal();
        let content = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {path}, which the Kafka property {name} names: {error}"))?;
        let content = content.strip_suffix('\n').unwrap_or(&content);
        let content = content.strip_suffix('\r').unwrap_or(content);
        all.insert(property.to_owned(), content.into());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect()
    }

    #[test]
    fn a_value_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, " s\np \r\n").unwrap();
        let named = properties(&[("sasl.password_file", path.to_str().unwrap()), ("sasl.username", "me")]);
        let read = read_files(&named).unwrap();
        assert_eq!(read, properties(&[("sasl.password", " s\np "), ("sasl.username", "me")]));
        let both = properties(&[("sasl.password_file", "/no/file"), ("sasl.password", "planted")]);
        let error = read_files(&both).unwrap_err();
        assert!(error.contains("both set") && !error.contains("planted"), "{error}");
        let error = read_files(&properties(&[("sasl.password_file", "/no/file")])).unwrap_err();
        assert!(error.contains("/no/file") && error.contains("sasl.password_file"), "{error}");
    }
}
