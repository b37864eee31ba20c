"""Where the published datasets of the paper come from: paths and git blob ids, no content."""

from __future__ import annotations

from dataclasses import dataclass

COMMIT = "0f56b431ad17215c40a9b7af8213ed01fa8e9da7"
BASE_URL = f"https://raw.githubusercontent.com/sakimarquis/llm_neurofeedback/{COMMIT}/data"


@dataclass(frozen=True)
class Source:
    """One published file."""

    key: str
    """Folder below data/published/."""
    path: str
    """Below the published data/ folder."""
    blob: str
    """git blob id, sha1 of ``blob <size>\\0`` and the content."""

    @property
    def name(self) -> str:
        """File name."""
        return self.path.rsplit("/", 1)[-1]


_FILES = {
    "commonsense": {
        "ethics_commonsense/cm_train.csv": "f24a09c32cc67ca492c66d94f40c87154824c923",
        "ethics_commonsense/cm_test.csv": "264495ef5cc96e872db9df93ffcff80f7e1a2de6",
    },
    "true_false": {
        "true-false-dataset/animals_true_false.csv": "a0042e19e70c10ba13d4334fbfa226f53849b53e",
        "true-false-dataset/cities_true_false.csv": "6c2031ceebaf7c857ec00d05f60e083b92eb3902",
        "true-false-dataset/companies_true_false.csv": "658074994692688379df86c3b710e284548f433f",
        "true-false-dataset/elements_true_false.csv": "24b6d6b7dfda8bdba2aca61e7c1547d1c09cfe6b",
        "true-false-dataset/facts_true_false.csv": "93c593f9cdbcd869effad40bc196711e110cfcbd",
        "true-false-dataset/generated_true_false.csv": "391db601612c1c188974b7a541ef3010ff8ab81b",
        "true-false-dataset/inventions_true_false.csv": "ec4b57f4344b101b5e3521f85677c8f1d37b20a3",
    },
    "sycophancy": {"sycophancy_agreement.txt": "afa3888a228b85d3f0a386089a2ae735f7694fba"},
    "emotion": {
        "emotions/happiness.json": "03b03184e917bb1f72887a04ab0815c0cc94ce98",
        "emotions/sadness.json": "2b96e46969eaa2d4b0b719a92bd36c01ab3946ed",
    },
}

SOURCES: dict[str, tuple[Source, ...]] = {
    key: tuple(Source(key, path, blob) for path, blob in files.items()) for key, files in _FILES.items()
}
# the smaller half of commonsense, as a set of its own; its file lies in the same folder
SOURCES["commonsense_test"] = SOURCES["commonsense"][1:]
