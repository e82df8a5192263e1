//! Patches: of a merge (RFC 7386), of JSON (RFC 6902), and applied manifests.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::error::ApiError;

/// Operations of a patch.
const OPERATIONS: usize = 1000;
/// Steps of a path in one: deeper are no objects of ours.
const DEPTH: usize = 32;
/// Operations that move or copy, each of which may make an object that much deeper.
const MOVES: usize = 64;
/// Bytes of what may still be copied: a copy at most doubles it.
const COPIED: usize = 256 << 10;

/// How a body changes an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Fields take the place of fields.
    Merge,
    /// Operations one after another.
    Json,
    /// What is declared is so, and it is made if it is not there.
    Apply,
}

impl Manner {
    /// That of a content type.
    ///
    /// # Errors
    /// [`ApiError::Type`] if it is none.
    pub fn of(content_type: &str) -> Result<Manner, ApiError> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        match media {
            // Our lists have no keys that they would be merged by.
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                Ok(Manner::Merge)
            }
            "application/json-patch+json" => Ok(Manner::Json),
            "application/apply-patch+yaml" => Ok(Manner::Apply),
            other => Err(ApiError::Type(format!(
                "a patch of type `{other}` is not known: use application/merge-patch+json, \
                 application/json-patch+json or application/apply-patch+yaml"
            ))),
        }
    }

    /// Reads the body of such a patch.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(self, body: &[u8]) -> Result<Value, ApiError> {
        match self {
            // JSON is YAML, too.
            Manner::Apply => super::serve::yaml(body),
            Manner::Merge | Manner::Json => serde_json::from_slice(body)
                .map_err(|e| ApiError::Request(format!("the patch is no JSON: {e}"))),
        }
    }

    /// Changes `target`.
    ///
    /// # Errors
    /// If the patch does not fit.
    pub fn apply(self, target: &mut Value, patch: &Value) -> Result<(), ApiError> {
        match self {
            // Of a status, which has no owners.
            Manner::Merge | Manner::Apply => json_patch::merge(target, patch),
            Manner::Json => {
                let patch: Patch = serde_json::from_value(patch.clone())
                    .map_err(|e| ApiError::Request(format!("the patch is no JSON patch: {e}")))?;
                patch_bounded(target, patch)?;
            }
        }
        Ok(())
    }
}

/// Does the operations of a JSON patch, none of which may make the object larger or deeper than objects are.
fn patch_bounded(target: &mut Value, patch: Patch) -> Result<(), ApiError> {
    let refused = |why: String| Err(ApiError::Request(format!("the patch {why}")));
    if patch.0.len() > OPERATIONS {
        return refused(format!("has more than {OPERATIONS} operations"));
    }
    let moves = |operation: &&PatchOperation| {
        matches!(operation, PatchOperation::Move(_) | PatchOperation::Copy(_))
    };
    if patch.0.iter().filter(moves).count() > MOVES {
        return refused(format!("moves and copies more than {MOVES} times"));
    }
    for operation in patch.0 {
        if operation.path().tokens().count() > DEPTH {
            return refused(format!(
                "goes deeper than {DEPTH} fields: {}",
                operation.path()
            ));
        }
        if matches!(operation, PatchOperation::Copy(_)) && target.to_string().len() > COPIED {
            return refused(format!(
                "copies within an object of more than {COPIED} bytes"
            ));
        }
        json_patch::patch(target, &Patch(vec![operation]))
            .map_err(|e| ApiError::Request(format!("the patch does not fit: {e}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_makes_nothing_that_is_larger_or_deeper_than_objects_are() {
        let double = |n| json!({"op": "copy", "from": "", "path": format!("/a{n}")});
        let doubled: Vec<Value> = (0..40).map(double).collect();
        let many = vec![json!({"op": "add", "path": "/a", "value": 1}); OPERATIONS + 1];
        let deep = json!([{"op": "add", "path": "/a".repeat(DEPTH + 1), "value": 1}]);
        for hostile in [json!(doubled), json!(many), deep] {
            let mut target = json!({"text": "x".repeat(1000)});
            assert!(Manner::Json.apply(&mut target, &hostile).is_err());
            assert!(target.to_string().len() <= 3 * COPIED);
        }
        let mut target = json!({"a": 1});
        let good =
            json!([{"op": "copy", "from": "/a", "path": "/b"}, {"op": "remove", "path": "/a"}]);
        Manner::Json.apply(&mut target, &good).expect("it fits");
        assert_eq!(target, json!({"b": 1}));
    }
}
