"""Lists of recordings of single speakers."""

import pandas as pd

from utils.data.recordings import read_listed


def test_paths_of_a_linked_list_are_relative_to_where_it_really_is(tmp_path):
    real = tmp_path / "data" / "train_sources.csv"
    real.parent.mkdir()
    pd.DataFrame({"speaker": ["a"], "path": ["a/0.wav"], "length": [100]}).to_csv(real, index=False)
    link = tmp_path / "elsewhere" / "train_sources.csv"
    link.parent.mkdir()
    link.symlink_to(real)
    [path] = read_listed(link, ("speaker", "path", "length"))["path"]
    assert path == str(tmp_path / "data" / "a" / "0.wav")
