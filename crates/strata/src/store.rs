//! `strata store`: look at stores.

use crate::args::{Global, StoreCommand};
use crate::connect::connect;
use crate::exit::{Failure, Outcome};
use crate::output;
use crate::status::{store_json, store_table};
use serde_json::json;

/// Runs one subcommand.
pub async fn run(global: &Global, command: StoreCommand) -> Outcome {
    let client = connect(global).await?;
    let status = client.admin().status().await?;
    match command {
        StoreCommand::List => {
            let json = json!(status.stores.iter().map(store_json).collect::<Vec<_>>());
            output::print(global.format, &json, || store_table(&status.stores))
        }
        StoreCommand::Show { id } => {
            let found = status
                .stores
                .iter()
                .find(|store| store.store.as_ref().is_some_and(|store| store.id == id));
            let Some(found) = found else {
                return Err(Failure::No(format!(
                    "store {id} does not exist: see `strata store list`"
                )));
            };
            output::print(global.format, &store_json(found), || {
                store_table(std::slice::from_ref(found))
            })
        }
    }
}
