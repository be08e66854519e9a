import pytest

from mmlska.checkpoint.files import check_target


def test_a_place_where_no_file_can_go_is_named_before_the_work(tmp_path):
    taken = tmp_path / 'a.onnx'
    taken.write_text('something')
    with pytest.raises(FileExistsError, match=r"a\.onnx' exists; use --force to write over it"):
        check_target(taken, ('.onnx',), False)
    assert check_target(str(taken), ('.onnx',), True) == taken
    with pytest.raises(ValueError, match=r"a\.pth' must end in \.onnx$"):
        check_target(tmp_path / 'a.pth', ('.onnx',), False)
    with pytest.raises(ValueError, match=r"a\.onnx' must end in one of \.pth, \.pt$"):
        check_target(taken, ('.pth', '.pt'), True)
    with pytest.raises(FileNotFoundError, match=r"the folder of '.*b/a\.onnx' does not exist"):
        check_target(tmp_path / 'b' / 'a.onnx', ('.onnx',), False)
    (tmp_path / 'c.onnx').mkdir()
    with pytest.raises(FileExistsError, match=r"c\.onnx' exists"):
        check_target(tmp_path / 'c.onnx', ('.onnx',), True)
