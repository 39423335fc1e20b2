"""Configurations that a hostile model file may hold, and the classes that unpickle as calls."""

import pickle

import yaml

from utils.training.model_files import build_system, pack, save

TWO_STEP = "local_models.two_step.TwoStep"
SEPARATOR = {
    "class_path": "asteroid.masknn.TDConvNet",
    "init_args": {"n_blocks": 1, "n_repeats": 1},
}


class Runs:
    """Unpickles as the call `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def spec(path, /, **arguments):
    return {"class_path": path, "init_args": arguments}


def typed(value):
    """A configuration with `value` where a network is expected."""
    return spec(TWO_STEP, separator=value, n_basis=8, kernel_size=8)


def untyped(value):
    """A configuration with `value` as an argument of a network that says nothing of its type."""
    network = spec(
        "asteroid.models.ConvTasNet", n_filters=8, n_blocks=1, n_repeats=1, out_chan=value
    )
    return spec("local_models.asteroid.AsteroidSystem", model=network)


def attacks(witness):
    """What a file may ask for, by name, as (configuration, what the refusal names). Each would make `witness`."""
    command, path = f"touch {witness}", str(witness)
    system = spec("os.system", command=command)
    hidden = spec("asteroid.utils.hub_utils.os.system", command=command)
    text = spec("utils.files.write_text", path=path, text="")
    as_json = f'{{"class_path": "os.system", "init_args": {{"command": "{command}"}}}}'
    as_yaml = yaml.safe_dump(system)
    other = witness.with_name("other.yml")
    other.write_text(as_yaml)
    bomb = witness.with_name("bomb.pth")
    bomb.write_bytes(pickle.dumps(Runs(open, path, "w")))
    opened = spec("logging.FileHandler", filename=path)
    distributed = "torch.nn.parallel.distributed"
    return {
        "the system itself": (system, "os.system"),
        "plain, typed": (typed(system), "os.system"),
        "plain, untyped": (untyped(system), "os.system"),
        "through Asteroid, typed": (typed(hidden), "hub_utils.os.system"),
        "through Asteroid, untyped": (untyped(hidden), "hub_utils.os.system"),
        "through torch.nn": (
            untyped(spec(f"{distributed}.os.system", command=command)),
            "distributed.os.system",
        ),
        "torch.save": (untyped(spec(f"{distributed}.torch.save", obj=1, f=path)), "torch.save"),
        "torch.save of ours": (
            untyped(spec("local_models.system.torch.save", obj=1, f=path)),
            "local_models.system.torch.save",
        ),
        "our writer": (untyped(text), "utils.files.write_text"),
        "our writer, typed": (typed(text), "utils.files.write_text"),
        "subprocess.run": (untyped(spec("subprocess.run", args=["touch", path])), "subprocess.run"),
        "a class of subprocess": (
            untyped(spec("subprocess.Popen", args=["touch", path])),
            "subprocess.Popen",
        ),
        "a class that opens a file": (untyped(opened), "logging.FileHandler"),
        "exec": (untyped(spec("builtins.exec", source=f"open({path!r}, 'w')")), "builtins.exec"),
        "eval": (untyped(spec("builtins.eval", source=f"open({path!r}, 'w')")), "builtins.eval"),
        "open": (untyped(spec("io.open", file=path, mode="w")), "io.open"),
        "a class of another package": (
            untyped(spec("asteroid.masknn.norms.partial", func="os.system")),
            "norms.partial",
        ),
        "JSON, typed": (typed(as_json), "os.system"),
        "JSON, untyped": (untyped(as_json), ""),
        "YAML, typed": (typed(as_yaml), "os.system"),
        "YAML, untyped": (untyped(as_yaml), ""),
        "a list of JSON": (untyped([as_json, f"[{as_json}]"]), ""),
        "JSON in JSON": (untyped(f'{{"class_path": "{TWO_STEP}", "x": {as_json}}}'), ""),
        "JSON for the whole": (as_json, "os.system"),
        "JSON for the arguments": (
            {"class_path": TWO_STEP, "init_args": f'{{"separator": {as_json}}}'},
            "",
        ),
        "a dotted name": (typed("os.system"), "os.system"),
        "a dotted name through Asteroid": (typed(hidden["class_path"]), "posix.system"),
        "a file of YAML": (typed(str(other)), "other.yml"),
        "a file of YAML, untyped": (untyped(str(other)), ""),
        "in a list": (untyped([1, [hidden]]), "hub_utils.os.system"),
        "in a tuple in a dict": (untyped({"a": (hidden,)}), "hub_utils.os.system"),
        "in dict_kwargs": (
            typed(SEPARATOR | {"dict_kwargs": {"x": hidden}}),
            "hub_utils.os.system",
        ),
        "beside the system": (typed(SEPARATOR) | {"more": hidden}, "hub_utils.os.system"),
        "in a container of torch": (
            untyped(spec("torch.nn.ModuleDict", modules={"a": hidden})),
            "hub_utils.os.system",
        ),
        "a method": (
            untyped(
                spec("asteroid.models.BaseModel.from_pretrained", pretrained_model_conf_or_path=str(bomb))
            ),
            "BaseModel.from_pretrained",
        ),
        "a function of Asteroid": (
            untyped(spec("asteroid.models.save_publishable", publish_dir=path, model_dict={})),
            "save_publishable",
        ),
        "a name that is no string": (untyped({"class_path": ["os", "system"]}), "os"),
        "through dunders": (
            untyped(spec("local_models.system.System.__init__.__globals__", command=command)),
            "__globals__",
        ),
    }  # fmt: skip


def names_of_attacks(folder):
    return sorted(attacks(folder / "witness"))


def saved(settings, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(pack(settings, build_system(settings).state_dict()), path)
    return path
