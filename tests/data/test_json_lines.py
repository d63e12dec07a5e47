import gzip
import json

import pytest

from alignment.data.json_lines import read_json_lines
from alignment.errors import DataError


def write(tmp_path, content, name="f.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


GOOD = b'{"a": 1}\n{"a": "\xe9\x9b\xaa"}\n'


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "renamed"])
def test_plain_and_gzipped_files_are_told_apart_by_content(tmp_path, pack, name):
    lines = read_json_lines(write(tmp_path, pack(GOOD), name))
    assert [(line.number, line.value, line.problem) for line in lines] == [
        (1, {"a": 1}, ""),
        (2, {"a": "雪"}, ""),
    ]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n \n", b"\r\n"])
def test_the_last_line_may_end_in_any_blank_way(tmp_path, ending):
    lines = read_json_lines(write(tmp_path, b'\xef\xbb\xbf{"a": 1}' + ending))
    assert [line.value for line in lines] == [{"a": 1}]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    text = json.dumps({"a": "one\u2028two\x85three"}, ensure_ascii=False)
    (line,) = read_json_lines(write(tmp_path, text.encode() + b"\n"))
    assert line.value == {"a": "one\u2028two\x85three"}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"{broken", "not JSON"),
        (b"", "the line is empty"),
        (b"[1]", "not a JSON object but list"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8 of the line"),
        (b"\x00" * 40, "not JSON"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_a_bad_line_in_the_middle_keeps_its_number_and_the_others_their_values(
    tmp_path, bad, problem
):
    lines = read_json_lines(write(tmp_path, b'{"a": 1}\n' + bad + b'\n{"a": 3}\n'))
    assert [line.value for line in lines] == [{"a": 1}, None, {"a": 3}]
    assert lines[1].number == 2
    assert lines[1].problem.startswith(problem)


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_half_written_last_line_refuses_the_file(tmp_path, cut):
    path = write(tmp_path, GOOD[:-cut] if cut > 1 else GOOD + b'{"a"')
    with pytest.raises(DataError, match=r"f\.jsonl, line [23]: the file ends within a line"):
        read_json_lines(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_an_error(tmp_path, content):
    with pytest.raises(DataError, match=r"f\.jsonl is empty"):
        read_json_lines(write(tmp_path, content))


def many_lines():
    return b"".join(json.dumps({"a": n, "b": str(n**5)}).encode() + b"\n" for n in range(20_000))


def test_a_truncated_gzip_names_file_and_line_reached(tmp_path):
    packed = gzip.compress(many_lines())
    with pytest.raises(DataError, match=r"f\.jsonl, after line [1-9]\d*: damaged gzip"):
        read_json_lines(write(tmp_path, packed[: len(packed) // 2]))


# Seen only by the checksum at the end, in the length behind it, and while unpacking.
@pytest.mark.parametrize("place", [0.5, 0.99999, 0.02])
def test_a_flipped_byte_in_a_gzip_is_noticed(tmp_path, place):
    packed = bytearray(gzip.compress(many_lines()))
    packed[int(len(packed) * place)] ^= 0xFF
    with pytest.raises(DataError, match="damaged gzip"):
        read_json_lines(write(tmp_path, bytes(packed)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_json_lines(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is not a file"):
        read_json_lines(tmp_path)
