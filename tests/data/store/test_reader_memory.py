"""The reader uses memory again while stamps are still being stored: none may be overwritten."""

import time

import numpy as np
from astropy.io import fits as pyfits

from vae_astro.data.sources.fits import plain_chunks
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.store import shard
from vae_astro.data.store.pack import open_or_pack


def test_stamps_that_wait_to_be_stored_are_not_overwritten_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_chunks, "MAX_FILES", 4)  # of many chunks,
    store_rows = shard._LotWriter._store_rows

    def slowly(self, block, rows):  # which are read much faster than they are stored
        time.sleep(0.02)
        store_rows(self, block, rows)

    monkeypatch.setattr(shard._LotWriter, "_store_rows", slowly)
    root = tmp_path / "sky"
    root.mkdir()
    rng = np.random.default_rng(0)
    images = rng.normal(100, 5, (60, 16, 16)).astype(np.float32)
    images[[8, 9, 10, 11, 30]] = np.nan  # a chunk without a stamp, and a stamp without a pixel
    for k, image in enumerate(images):
        pyfits.writeto(root / f"{k:02}.fits", image)
    store = open_or_pack(root, FitsReader(), tmp_path / "stores", progress=False)
    kept = np.isfinite(images).all(axis=(1, 2))
    assert store.n_rejected == 5
    np.testing.assert_array_equal(store.gather(np.arange(len(store)))[:, 0], images[kept])


def test_nor_by_one_after_stamps_that_do_not_fit_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_chunks, "MAX_FILES", 4)
    store_rows = shard._LotWriter._store_rows

    def slowly(self, block, rows):
        time.sleep(0.02)
        store_rows(self, block, rows)

    monkeypatch.setattr(shard._LotWriter, "_store_rows", slowly)
    root = tmp_path / "sky"
    root.mkdir()
    images = np.random.default_rng(0).normal(100, 5, (60, 16, 16)).astype(np.float32)
    other = (
        set(range(4, 60, 8)) | set(range(5, 60, 8)) | set(range(6, 60, 8)) | set(range(7, 60, 8))
    )
    for k, image in enumerate(images):  # every second chunk has two bands, and is set aside
        pixels = np.stack([image, image]) if k in other else image
        pyfits.writeto(root / f"{k:02}.fits", pixels)
    store = open_or_pack(root, FitsReader(), tmp_path / "stores", progress=False)
    kept = [k for k in range(60) if k not in other]
    np.testing.assert_array_equal(store.gather(np.arange(len(store)))[:, 0], images[kept])
