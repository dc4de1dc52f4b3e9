"""Equal files, and images that nothing names."""

from isda.data.analysis.files import equal_files, stray_images


def test_files_with_the_same_bytes(tmp_path):
    contents = {"a": b"same", "b": b"other", "c": b"same", "d": b"four", "e": b"other"}
    paths = [tmp_path / name for name in contents]
    for path, content in zip(paths, contents.values()):
        path.write_bytes(content)
    groups = equal_files([*paths, paths[0], tmp_path / "missing"])
    assert [[path.name for path in group] for group in groups] == [["a", "c"], ["b", "e"]]


def test_images_that_nothing_names(tmp_path):
    for name in ("train/a.jpg", "train/b.JPG", "train/sub/c.png", "val/d.tif", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "train/._a.jpg").write_bytes(b"")  # as macOS leaves them
    named = [tmp_path / "train/../train/a.jpg", tmp_path / "val/d.tif"]
    strays = stray_images([tmp_path / "train", tmp_path, tmp_path / "none"], named)
    assert strays == [str(tmp_path / name) for name in ("train/b.JPG", "train/sub/c.png")]
