//! What is given as a model and is none is refused by what it is, with what to do.

use std::path::{Path, PathBuf};

use nearshore_engine::inspect;

use crate::files::{fixture, fixture_json, write_folder};

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 269060552\n";
const PAGE: &str = "<!doctype html>\n<html class=\"\"><head></head></html>";

fn error(path: &Path) -> String {
    let error = inspect(path).expect_err("refused").to_string();
    assert!(error.starts_with(&path.display().to_string()), "{error}");
    error
}

fn model(path: &Path) -> PathBuf {
    std::fs::create_dir_all(path).expect("created");
    write_folder(path, &fixture_json("folders.json")["cases"][0], 1);
    path.to_owned()
}

#[test]
fn a_pointer_or_a_page_in_place_of_any_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    for name in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        let file = path.join(name);
        let whole = std::fs::read(&file).ok();
        for (content, expected) in [
            (
                POINTER,
                "is a pointer of Git LFS to a file of 269060552 bytes, not the file: run `git lfs pull`",
            ),
            (PAGE, "is a web page that was saved in place of the file"),
            ("", "is empty"),
        ] {
            std::fs::write(&file, content).expect("written");
            let error = error(&path);
            assert!(error.contains(&format!("{name}: {expected}")), "{error}");
        }
        match whole {
            Some(whole) => std::fs::write(&file, whole).expect("written"),
            None => std::fs::remove_file(&file).expect("removed"),
        }
    }
    inspect(&path).expect("whole again");
    for (content, expected) in [(POINTER, "Git LFS"), (PAGE, "a web page"), ("", "is empty")] {
        let file = path.join("model.gguf");
        std::fs::write(&file, content).expect("written");
        assert!(error(&file).contains(expected));
    }
}

#[test]
fn a_cache_of_hugging_face_is_named_with_its_snapshots() {
    let cache = tempfile::tempdir().expect("a folder");
    let root = cache.path().join("models--org--name");
    let first = model(&root.join("snapshots/0aaa"));
    let second = model(&root.join("snapshots/1bbb"));
    let found = error(&root);
    assert!(
        found.contains("is the cache of a Hugging Face repository"),
        "{found}"
    );
    assert!(found.contains(&first.display().to_string()), "{found}");
    std::fs::create_dir_all(root.join("refs")).expect("created");
    std::fs::write(root.join("refs/main"), "1bbb").expect("written");
    let found = error(&root);
    assert!(
        found.ends_with(&format!("give a snapshot in it: {}", second.display())),
        "{found}"
    );
    assert!(error(cache.path()).contains(&second.display().to_string()));
    assert!(error(&root.join("snapshots")).contains(&second.display().to_string()));
    inspect(&second).expect("a snapshot is a model");
    let empty = cache.path().join("models--org--empty");
    std::fs::create_dir_all(empty.join("snapshots/2ccc")).expect("created");
    assert!(error(&empty).contains("without a complete snapshot"));
}

#[test]
fn a_file_of_a_folder_given_as_the_model_is_named_with_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let found = error(&path.join(name));
        let expected = format!(
            "is one file of a model's folder: give the folder, {},",
            path.display()
        );
        assert!(found.contains(&expected), "{found}");
    }
    std::fs::write(path.join("pytorch_model.bin"), b"\x80\x02}").expect("written");
    assert!(error(&path.join("pytorch_model.bin")).contains("is a pickle"));
    // A GGUF file is read whatever it is called.
    let named = path.join("model.bin");
    std::fs::copy(fixture("llama.gguf"), &named).expect("copied");
    inspect(&named).expect("a GGUF");
}

#[test]
fn a_folder_without_a_model_is_named_with_what_is_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(error(folder.path()).contains("has no config.json: give a GGUF file, or a folder"));
    let inside = model(&folder.path().join("inside"));
    assert!(
        error(folder.path()).contains(&format!("give the folder of one: {}", inside.display()))
    );
    let gguf = folder.path().join("a.gguf");
    std::fs::copy(fixture("llama.gguf"), &gguf).expect("copied");
    assert!(error(folder.path()).contains(&format!("give one of the files: {}", gguf.display())));
}
