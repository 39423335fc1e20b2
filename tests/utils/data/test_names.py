from utils.data.names import distinct


def test_names_are_kept_where_they_can_be_and_always_differ():
    labels = ["x", "a b", "a/b", "a_b", "caf\udce9", "line\nbreak", "é" * 150]
    names = distinct(labels, labels)
    assert names[:2] == ["x", "a b"] and len(set(names)) == len(labels)
    assert all("/" not in name and "\n" not in name for name in names)
    assert all(len(name.encode()) <= 200 for name in names)
    assert distinct(["a/b"], ["a/b"]) == ["a_b"]
    assert distinct(["a", "a"], ["1", "1"]) == ["a", "a"]
