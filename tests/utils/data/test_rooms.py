from dataclasses import replace

import numpy as np
import pyroomacoustics as pra
import pytest

from utils.data.rooms import DELAY, Room, RoomRules, draw_room, simulate
from utils.errors import UserError

RATE = 16000
SMALL = RoomRules(length=(4, 5), width=(4, 5), height=(2.5, 3), t60=(0.15, 0.25))


def distances(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


@pytest.mark.parametrize("n_mics, n_src", [(1, 1), (2, 2), (3, 3), (4, 4), (6, 2)])
def test_rooms_keep_the_rules(n_mics, n_src):
    rules = RoomRules(n_mics=n_mics)
    for seed in range(30):
        room = draw_room(rules, n_src, np.random.default_rng(seed))
        assert (room.size[:2] >= 5).all() and (room.size[:2] <= 10).all() and 3 <= room.size[2] <= 4
        assert 0.2 <= room.t60 <= 0.6
        centre = room.mics[:2].mean(0)
        assert np.abs(centre[:2] - room.size[:2] / 2).max() <= 0.2 and 1 <= centre[2] <= 2
        assert room.mics.shape == (n_mics, 3) and room.sources.shape == (n_src, 3)
        if n_mics > 1:
            radius = np.linalg.norm(room.mics - centre, axis=1)
            assert 0.075 <= radius[0] <= 0.125 and (radius <= radius[0] + 1e-9).all()
            assert (distances(room.mics, room.mics) + np.eye(n_mics) >= 0.05).all()
        assert (distances(room.sources, room.sources) + 9 * np.eye(n_src) >= 1).all()
        assert (distances(room.sources, centre[None]) >= 0.5).all()
        assert np.abs(room.sources[:, :2] - centre[:2]).max() <= 1.5
        for point in (*room.mics, *room.sources):
            assert (point >= 0.3).all() and (point <= room.size - 0.3).all()


def test_sources_may_stand_anywhere_on_the_floor():
    rules = RoomRules(length=(9, 10), width=(9, 10), source_square=0.0)
    rooms = [draw_room(rules, 2, np.random.default_rng(seed)) for seed in range(20)]
    assert max(np.abs(room.sources[:, :2] - room.size[:2] / 2).max() for room in rooms) > 3


def test_nothing_stands_too_near_to_any_wall_floor_or_ceiling():
    # Half of the heights, and much of the floor, are too near: in the usual rooms nothing ever comes near a wall.
    low = RoomRules(height=(3, 3), source_square=0.0, source_height=(0, 3), wall_distance=0.7)
    low = replace(low, array_height=(0, 3))
    for seed in range(10):
        room = draw_room(low, 2, np.random.default_rng(seed))
        for points in (room.mics, room.sources):
            assert points.min() >= 0.7
            assert (room.size - points).min() >= 0.7


def test_the_seed_is_all_that_a_room_depends_on():
    first, again, other = (draw_room(SMALL, 2, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first.sources, again.sources) and not np.array_equal(
        first.sources, other.sources
    )
    responses, repeated = simulate(first, RATE), simulate(again, RATE)
    assert np.array_equal(responses.full, repeated.full) and responses.full.dtype == np.float32


def test_direct_sound_arrives_at_its_time_and_level():
    room = draw_room(SMALL, 3, np.random.default_rng(3))
    responses = simulate(room, RATE)
    assert (
        responses.full.shape[:2]
        == responses.anechoic.shape[:2]
        == responses.arrival.shape
        == (2, 3)
    )
    distance = room.distances()
    spectrum = np.fft.rfft(responses.anechoic, axis=-1)
    frequency = np.fft.rfftfreq(responses.anechoic.shape[-1], 1 / RATE)
    expected = np.exp(
        -2j * np.pi * frequency * (distance[..., None] / pra.constants.get("c") + DELAY / RATE)
    )
    expected /= distance[..., None]
    low = frequency < 6000
    assert np.abs(spectrum - expected)[..., low].max() < 0.01 * np.abs(expected).max()
    assert np.array_equal(np.abs(responses.anechoic).argmax(-1), responses.arrival)


def test_full_responses_are_those_of_pyroomacoustics_and_start_with_the_direct_sound():
    room = draw_room(SMALL, 2, np.random.default_rng(5))
    absorption, order = pra.inverse_sabine(room.t60, room.size)
    box = pra.ShoeBox(room.size, fs=RATE, materials=pra.Material(absorption), max_order=order)
    box.add_microphone_array(room.mics.T)
    for position in room.sources:
        box.add_source(position)
    box.compute_rir()  # with its high-pass filter at 10 Hz
    full = simulate(room, RATE).full
    for mic in range(2):
        for source in range(2):
            theirs, ours = box.rir[mic][source], full[mic, source]
            spectra = [np.fft.rfft(x, 16384)[100:] for x in (theirs, ours)]  # above 98 Hz
            error = np.linalg.norm(spectra[0] - spectra[1]) / np.linalg.norm(spectra[0])
            assert error < 0.02


def test_the_reverberation_time_is_near_the_one_asked_for():
    for t60 in (0.2, 0.4):
        room = replace(draw_room(SMALL, 1, np.random.default_rng(0)), t60=t60)
        full = simulate(room, RATE).full
        measured = pra.experimental.measure_rt60(full[0, 0].astype(float), fs=RATE, decay_db=20)
        assert measured == pytest.approx(t60, rel=0.5)  # Sabine's formula is coarse


def test_early_part_ends_50_ms_after_the_direct_sound():
    room = draw_room(SMALL, 2, np.random.default_rng(2))
    responses = simulate(room, RATE)
    early = responses.early(RATE)
    for mic in range(2):
        for source in range(2):
            last = responses.arrival[mic, source] + 800
            assert np.array_equal(
                early[mic, source, : last + 1], responses.full[mic, source, : last + 1]
            )
            assert not early[mic, source, last + 1 :].any()
    assert early.shape[-1] == responses.arrival.max() + 801
    assert responses.early(RATE, 1e6).shape == responses.full.shape


def test_a_room_without_reflections_is_its_direct_sound():
    room = replace(draw_room(SMALL, 2, np.random.default_rng(0)), t60=0.0)
    responses = simulate(room, RATE)
    assert np.array_equal(responses.full, responses.anechoic)


@pytest.mark.parametrize(
    "rules",
    [
        replace(SMALL, t60=(0.01, 0.02)),
        replace(SMALL, source_distance=6.0),
        replace(SMALL, n_mics=200),
        replace(SMALL, array_height=(5.0, 6.0)),
    ],
)
def test_rules_that_no_room_keeps_are_told(rules, monkeypatch):
    monkeypatch.setattr("utils.data.rooms.TRIES", 50)
    with pytest.raises(UserError, match="no room with .* kept these rules"):
        draw_room(rules, 2, np.random.default_rng(0))


def test_a_room_that_cannot_be_built_is_told():
    room = Room(
        np.array([10.0, 10.0, 4.0]), 0.05, np.array([[5.0, 5.0, 1.0]]), np.array([[6.0, 6.0, 1.5]])
    )
    with pytest.raises(UserError, match=r"10.00 x 10.00 x 4.00 m cannot have a T60 of 0.050 s"):
        simulate(room, RATE)


def test_settings_of_pyroomacoustics_are_left_as_they_were():
    simulate(draw_room(SMALL, 1, np.random.default_rng(0)), RATE)
    assert pra.constants.get("rir_hpf_enable") is True
