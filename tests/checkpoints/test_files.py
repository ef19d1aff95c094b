import pytest
import torch

from lightning_minillm.checkpoints.files import AtomicCheckpointIO, backup_of, put_in_place, read_checkpoint, recover

CHECKPOINT = {"pytorch-lightning_version": "2.5.0", "state_dict": {"weight": torch.arange(3.0)}}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    path, io = tmp_path / "kept" / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"pytorch-lightning_version": "older"}, path)
    io.save_checkpoint(CHECKPOINT, path)
    assert torch.equal(io.load_checkpoint(path)["state_dict"]["weight"], torch.arange(3.0))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_what_killed_runs_left_behind_is_removed(tmp_path):
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.123.part").write_text("half")
    path.mkdir()  # a checkpoint of a run that wrote folders
    (path / "meta.pt").write_text("")
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.is_file()


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint(CHECKPOINT, path)
    with pytest.raises((TypeError, AttributeError)):
        io.save_checkpoint({"cannot be pickled": lambda: None}, path)
    assert io.load_checkpoint(path).keys() == CHECKPOINT.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_and_storage_options_are_errors(tmp_path):
    with pytest.raises(ValueError, match="is a folder written by several ranks: resume with strategy=fsdp"):
        AtomicCheckpointIO().load_checkpoint(tmp_path)
    with pytest.raises(TypeError, match="takes no storage_options"):
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "x.ckpt", storage_options={})


@pytest.mark.parametrize(("content", "message"), [(b"PK half", "not a complete checkpoint"), (None, "training run")])
def test_a_file_that_is_no_checkpoint_is_an_error_that_names_others(content, message, tmp_path):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    torch.save({"weights": torch.zeros(2)}, path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{message}.*; there is no other checkpoint .* resume=never$"):
        io.load_checkpoint(path)
    io.save_checkpoint(CHECKPOINT, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"; its folder also contains best\.ckpt: resume from one with ckpt_path="):
        io.load_checkpoint(path)


def test_errors_without_text_and_out_of_memory_while_reading(tmp_path):
    def fail(error):
        raise error

    with pytest.raises(ValueError, match=r"not a complete checkpoint \(EOFError: \)"):
        read_checkpoint(tmp_path / "a.ckpt", lambda: fail(EOFError()))
    with pytest.raises(torch.OutOfMemoryError):
        read_checkpoint(tmp_path / "a.ckpt", lambda: fail(torch.OutOfMemoryError("CUDA out of memory")))


def test_an_interrupted_replacement_of_a_folder_is_undone(tmp_path):
    path, scratch = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.part"
    assert not recover(path)
    for content in ("first", "second"):
        scratch.mkdir()
        (scratch / "meta.pt").write_text(content)
        put_in_place(scratch, path)
    assert (path / "meta.pt").read_text() == "second"
    path.rename(backup_of(path))  # killed between the two moves
    assert recover(path)
    assert (path / "meta.pt").read_text() == "second"
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"]
