"""Everything that describes the package stands in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

# Links that work in the repository have to work on a package index too.
readme = (here / "README.md").read_text(encoding="utf-8")
readme = readme.replace("](nbs/images/", f"]({settings['git_url']}/raw/{settings['branch']}/nbs/images/")
readme = readme.replace("](nbs/", f"]({settings['git_url']}/blob/{settings['branch']}/nbs/")

suffix = "_requirements"
extras = {key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)}

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Topic :: Multimedia :: Sound/Audio",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),  # those of scripts/install_matrix.py
    ],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    include_package_data=False,
    package_data={settings["lib_name"]: ["weights/*/*.json", "weights/*/*.safetensors"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    # The second is how nbdev finds our names, for links in the docs.
    entry_points={"console_scripts": settings["console_scripts"].split(), "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)
