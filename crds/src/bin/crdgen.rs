//! Writes the CustomResourceDefinitions and their reference pages.
//!
//! `crdgen [--yaml DIR] [--docs DIR]`; without arguments both, to `crds/yaml` and `docs/reference` of this repository.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut yaml, mut docs) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--yaml" => &mut yaml,
            "--docs" => &mut docs,
            _ => {
                return Err(
                    format!("unknown argument {argument}; usage: crdgen [--yaml DIR] [--docs DIR]").into()
                );
            }
        };
        *target =
            Some(PathBuf::from(arguments.next().ok_or_else(|| format!("{argument} needs a directory"))?));
    }
    if yaml.is_none() && docs.is_none() {
        yaml = Some(root.join("crds/yaml"));
        docs = Some(root.join("docs/reference"));
    }
    for crd in quorumail_crds::definitions() {
        let name = crd.spec.names.kind.to_lowercase();
        if let Some(directory) = &yaml {
            fs::create_dir_all(directory)?;
            fs::write(directory.join(format!("{name}.yaml")), serde_yaml::to_string(&crd)?)?;
        }
        if let Some(directory) = &docs {
            fs::create_dir_all(directory)?;
            fs::write(directory.join(format!("{name}.md")), quorumail_crds::reference::page(&crd))?;
        }
    }
    Ok(())
}
