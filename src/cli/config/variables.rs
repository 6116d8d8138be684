//! `SEPAL_*`: options by the names of their flags, with the command's name before that or for all commands that have them.

use super::{
    options::{Catalogue, FILE_OPTION, nearest, normal},
    setting::{Origin, Raw, Setting},
};

const PREFIX: &str = "SEPAL_";

/// Variables of `scripts/install.sh` that are no options here.
const OF_INSTALLER: [&str; 2] = ["SERVE", "PEERS"];

/// What the environment says, for all commands, and what it says in vain.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// The file of the configuration.
    pub(super) file: Option<String>,
    pub(super) settings: Vec<Setting>,
    /// One line for each variable that is nothing of ours. No error: somebody else's names may begin the same way.
    pub(super) warnings: Vec<String>,
}

impl Variables {
    /// `variables` are all there are.
    pub(super) fn read(variables: &[(String, String)], catalogue: &Catalogue) -> Self {
        let mut read = Self::default();
        // Kubernetes tells every pod about a service called "sepal" in variables such as SEPAL_PORT=tcp://10.0.0.1:80.
        let in_service = variables.iter().any(|(name, _)| name == "SEPAL_SERVICE_HOST");
        let of_service = |rest: &str| in_service && (rest.starts_with("SERVICE_") || rest.starts_with("PORT"));
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else {
                continue;
            };
            // Set to nothing is not set, as compose files need it.
            if value.is_empty() || of_service(rest) {
                continue;
            }
            let wanted = normal(rest);
            if wanted == FILE_OPTION {
                read.file = Some(value.clone());
            } else if let Some((scope, key)) = meaning(catalogue, &wanted) {
                read.settings.push(Setting {
                    scope,
                    key,
                    raw: Raw::Variable(value.clone()),
                    origin: Origin::Variable(name.clone()),
                });
            } else if OF_INSTALLER.contains(&rest) {
                let warning = format!("{name} is a variable of scripts/install.sh and no option of sepal");
                read.warnings.push(warning);
            } else {
                let names = all(catalogue);
                let near = nearest(&wanted, names.iter().map(String::as_str));
                let hint = near.map_or_else(String::new, |near| format!("; did you mean {}?", variable(near)));
                read.warnings.push(format!("{name} is no option of sepal{hint}"));
            }
        }
        read
    }
}

/// The command and the option that `name` stands for.
fn meaning(catalogue: &Catalogue, name: &str) -> Option<(Vec<String>, String)> {
    catalogue.scopes().into_iter().find_map(|scope| {
        let prefix: String = scope.iter().map(|part| format!("{part}-")).collect();
        let key = name.strip_prefix(&prefix)?;
        catalogue.knows(scope, key).then(|| (scope.to_vec(), key.to_owned()))
    })
}

/// Every name with a meaning, as [`meaning`] takes it.
pub(super) fn all(catalogue: &Catalogue) -> Vec<String> {
    let mut names = vec![FILE_OPTION.to_owned()];
    for options in &catalogue.commands {
        let prefix: String = options.path.iter().map(|part| format!("{part}-")).collect();
        for key in options.options.iter().flat_map(|option| &option.keys) {
            if options.takes(&[], key).is_some() {
                names.push(key.clone());
            }
            names.push(format!("{prefix}{key}"));
        }
    }
    names
}

/// A name as a variable has it.
pub(super) fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('-', "_").to_uppercase())
}
