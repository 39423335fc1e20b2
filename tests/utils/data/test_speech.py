"""Synthesised speech is reproducible to the byte, and its speakers differ."""

import random
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT
from utils.data import speech

SCRIPT = """
import hashlib, sys
from utils.data import speech
a, b = speech.make_speakers(2, 1)
for speaker in (a, b) if sys.argv[1] == "forward" else (b, a, b):
    digest = hashlib.sha256(speech.synthesise("Good morning.", speaker, 16000).tobytes()).hexdigest()
    if speaker == a: print(digest)
"""


@pytest.mark.slow
def test_bytes_depend_neither_on_the_process_nor_on_what_was_said_before():
    run = [sys.executable, "-c", SCRIPT]
    root = ROOT
    digests = {
        subprocess.run([*run, order], cwd=root, capture_output=True, check=True).stdout
        for order in ("forward", "x")
    }
    assert len(digests) == 1 and len(digests.pop()) == 65


def test_speakers_are_distinct_and_reproducible():
    speakers = speech.make_speakers(20, seed=3)
    assert speakers == speech.make_speakers(20, seed=3) and len(set(speakers)) == 20
    assert speakers != speech.make_speakers(20, seed=4)
    assert all(
        "+fm"[1:][i % 2] in speaker.voice.split("+")[1] for i, speaker in enumerate(speakers)
    )


def test_speech_has_the_rate_asked_for_and_no_silent_ends():
    speaker = speech.make_speakers(1, 0)[0]
    slow, fast = (speech.synthesise("A quiet river.", speaker, rate) for rate in (8000, 16000))
    assert len(fast) / len(slow) == pytest.approx(2, abs=0.001)
    assert fast.dtype == np.float32 and np.abs(fast).max() == pytest.approx(0.5)
    assert 0.4 < len(fast) / 16000 < 3
    assert np.abs(fast[:400]).max() > 0.001 and np.abs(fast[-400:]).max() > 0.001


def test_sentences_are_varied_and_of_some_seconds():
    draw = random.Random(0)
    sentences = [speech.make_sentence(draw) for _ in range(50)]
    assert len(set(sentences)) == 50
    speaker = speech.make_speakers(2, 0)[1]
    assert all(
        1.5 < len(speech.synthesise(text, speaker, 16000)) / 16000 < 5 for text in sentences[:5]
    )


def test_an_unknown_voice_is_an_error():
    with pytest.raises(ValueError, match="no voice 'nonsense"):
        speech.synthesise("Hello.", speech.Speaker("nonsense+m1", 40, 150, 50, 1.0), 16000)
