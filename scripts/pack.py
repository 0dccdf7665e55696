"""Pack stamps into a store ahead of training, and look after stores.

python scripts/pack.py data=fits data.root=FOLDER [pack.n_processes=8] [pack.cluster=tcp://HOST:8786]
python scripts/pack.py action=inspect [store=FOLDER] [catalogue=FILE.parquet]
python scripts/pack.py action=verify [store=FOLDER]
python scripts/pack.py action=repair data=fits data.root=FOLDER
python scripts/pack.py action=gc [store=FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.files import whole
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

if TYPE_CHECKING:
    from vae_astro.data.store.store import StampStore

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="../conf", config_name="pack", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Do what ``action`` says."""
    import logging

    from vae_astro.settings import check_choice

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    actions = {"pack": pack, "inspect": inspect, "verify": verify, "repair": repair, "gc": clear}
    settings["data"]["progress"] = settings["progress"]
    check_choice("action", settings["action"], tuple(actions))
    sys.exit(actions[settings["action"]](settings))


def pack(settings: dict[str, Any]) -> int:
    """Pack what is below ``data.root`` and has not been packed."""
    import time

    from vae_astro.data.store.server import warm_up

    if settings["pack"]["n_processes"] != 1 and settings["pack"]["cluster"] is None:
        warm_up()

    from vae_astro.data.store.layout import is_store
    from vae_astro.data.store.settings import packer_from
    from vae_astro.data.store.store import StampStore

    began = time.perf_counter()
    root, packer = packer_from(settings["data"], settings["pack"])
    if settings["data"].get("n_stamps") is not None:
        from vae_astro.data.datamodule import StampDataModule

        StampDataModule(**settings["data"], pack=settings["pack"]).prepare_data()
    finished = is_store(Path(root.address))  # the root may be one itself
    _report(StampStore.open(Path(root.address)) if finished else packer.open(root), began)
    return 0


def inspect(settings: dict[str, Any]) -> int:
    """Print what stores hold, and write the catalogue of one."""
    from vae_astro.data.store.store import StampStore
    from vae_astro.data.store.tools import describe_store
    from vae_astro.errors import InputError

    stores = _stores(settings)
    for path in stores:
        for name, value in describe_store(path).items():
            print(f"{name:30}{value}")
        print()
    if settings["catalogue"] is not None:
        if len(stores) > 1:
            raise InputError("catalogue= writes the catalogue of one store: give store=FOLDER")
        _write_table(StampStore.open(stores[0]).catalogue, settings["catalogue"])
    return 0


def verify(settings: dict[str, Any]) -> int:
    """Compare all bytes with their checksums; status 1 if some differ."""
    from vae_astro.data.store.check import verify

    status = 0
    for path in _stores(settings):
        damage = list(verify(path))
        for each in damage:
            print(f"{path}/{each.file}: {each.problem}")
        print(f"{path}: {'damaged' if damage else 'as it was written'}")
        status = max(status, int(bool(damage)))
    return status


def repair(settings: dict[str, Any]) -> int:
    """Pack damaged shards again, and what had vanished or changed while it was read."""
    import time

    from vae_astro.data.store.settings import packer_from
    from vae_astro.errors import InputError

    began = time.perf_counter()
    root, packer = packer_from(settings["data"], settings["pack"])
    path = packer.path(root)
    if settings["store"] is not None and Path(settings["store"]).resolve() != path.resolve():
        raise InputError(
            f"store={settings['store']} is not what these settings of data make of data.root="
            f"{root.address}: that is {path}; leave store= away, or give the settings that it was "
            "packed with (action=inspect shows them)"
        )
    _report(packer.repair(root), began)
    return 0


def clear(settings: dict[str, Any]) -> int:
    """Delete what no store refers to."""
    from vae_astro.data.store.tools import remove_unused

    for path in _stores(settings):
        n_files, n_bytes = remove_unused(path)
        print(f"{path}: {n_files} files deleted, {n_bytes / 2**20:.1f} MiB")
    return 0


def _report(store: StampStore, began: float) -> None:
    import time

    seconds = time.perf_counter() - began
    print(f"{len(store)} stamps in {store.path}, {store.n_rejected} set aside, {seconds:.1f} s")


def _stores(settings: dict[str, Any]) -> list[Path]:
    from vae_astro.data.store.tools import find_stores

    return find_stores(Path(settings["store"] or settings["data"]["store_dir"]).expanduser())


def _write_table(table: Any, file: str) -> None:
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    from vae_astro.errors import InputError

    writers = {
        ".parquet": pyarrow.parquet.write_table,
        ".csv": pyarrow.csv.write_csv,
        ".arrow": pyarrow.feather.write_feather,
    }
    suffix = Path(file).suffix
    if suffix not in writers:
        raise InputError(f"catalogue={file} must end in {', '.join(writers)}")
    try:
        with whole(Path(file).expanduser()) as partial:
            writers[suffix](table, partial)
    except OSError as error:
        raise InputError(f"catalogue={file} cannot be written: {error}") from error
    print(f"{table.num_rows} rows in {file}")


if __name__ == "__main__":
    run(main, "pack", CONF)
