"Hand the package metadata of settings.ini to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
name = cfg["lib_name"]

setup(
    name=name, version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", url=cfg["git_url"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require={key.removeprefix("extra_"): value.split() for key, value in cfg.items() if key.startswith("extra_")},
    entry_points={"console_scripts": [f"{name} = {name}.cli:main"], "nbdev": [f"{name} = {name}._modidx:d"]},
    # What long runs left behind travels with the library, so that `recall` works without a checkout.
    packages=[*find_packages(include=[name, name + ".*"]), f"{name}.results"],
    package_dir={f"{name}.results": "results"},
    package_data={name: ["py.typed"], f"{name}.results": ["**/*.json", "**/*.safetensors"]},
)
