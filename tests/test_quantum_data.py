"""Data of the chapter on quantum-friendly normalisation: loaders on small files of the real form, clusters, splits."""

import gzip
import itertools

import numpy as np
import pytest
import torch

from physattn.foundations.experiments import recall, reproduce
from physattn.quantum import data
from physattn.quantum.data import (
    Examples,
    Lexicon,
    balanced_accuracy,
    bases,
    benchmark_overlap,
    cluster_split,
    clusters,
    frames,
    load,
    logistic_regression,
    nearest_neighbour,
    overlap,
    read_sentences,
    spectrum,
    tables,
    words,
)


def random_sequences(n, length=80, seed=0):
    letters = np.random.default_rng(seed).choice(list("ACGT"), (n, length))
    return ["".join(row) for row in letters]


def by_brute_force(sequences, k):
    "Components of the graph of shared words, with sets and a hand-made union-find."
    swap = str.maketrans("ACGT", "TGCA")

    def contained(s):
        both = (s, s[::-1].translate(swap))
        found = {t[i : i + k] for t in both for i in range(len(t) - k + 1)}
        return {w for w in found if set(w) <= set("ACGT")}

    sets, parent = [contained(s) for s in sequences], list(range(len(sequences)))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in itertools.combinations(range(len(sets)), 2):
        if sets[i] & sets[j]:
            parent[root(i)] = root(j)
    return [root(i) for i in range(len(sets))]


def same_partition(a, b):
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize("k", [6, 8, 12])
def test_clusters_are_those_of_brute_force(k):
    sequences = random_sequences(40)
    sequences[3] = sequences[3][:30] + "N" * 20 + sequences[3][50:]
    sequences[7] = sequences[5][10:] + sequences[6][:10]
    assert same_partition(clusters(sequences, k).tolist(), by_brute_force(sequences, k))


def test_clusters_join_overlaps_on_both_strands_and_chains():
    long, other = random_sequences(2, 200)
    swap = str.maketrans("ACGT", "TGCA")
    windows = [long[0:80], long[39:119], long[79:159][::-1].translate(swap), other[:80]]
    found = clusters(windows, 40)
    assert found[0] == found[1] == found[2] != found[3]
    apart = clusters([long[0:80], long[41:121]], 40)  # they share 39 letters
    assert apart[0] != apart[1]


def test_a_word_with_an_unknown_letter_joins_nobody():
    a, b = random_sequences(2, 60)
    unknown = "N" * 60
    assert len(set(clusters([unknown, unknown, a, b], 40))) == 4


def test_cluster_split_never_divides_and_keeps_proportions():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(300), rng.integers(1, 30, 300))
    labels = torch.tensor(rng.integers(0, 2, 300))[torch.tensor(groups)]
    fractions = (0.72, 0.1, 0.18)
    for seed in range(3):
        split = cluster_split(groups, labels, fractions, seed)
        for part, share in zip(("train", "dev", "test"), fractions):
            here = split == part
            assert not set(groups[here]) & set(groups[~here])
            for c in (0, 1):
                mine = (labels.numpy() == c) & here
                assert abs(mine.sum() / (labels == c).sum().item() - share) < 0.01
    assert (
        cluster_split(groups, labels, seed=0) != cluster_split(groups, labels, seed=1)
    ).any()


def test_words_count_in_base_four_and_frames_shift():
    assert words(bases(["AACA", "TTTT"]), 4).tolist() == [[4], [255]]
    (s,) = random_sequences(1, 251)
    ids = frames([s])
    assert ids.shape == (4, 1, 62, 1)
    letters = "".join(
        "ACGT"[(int(t) - 1) >> shift & 3]
        for t in ids[2].flatten()
        for shift in (6, 4, 2, 0)
    )
    assert letters == s[2:250]


def test_overlap_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    test, train = (
        np.column_stack([rng.integers(0, 3, n), rng.integers(0, 2000, n)]) for n in (40, 30)
    )
    test, train = (np.column_stack([t, t[:, 1] + 251]) for t in (test, train))
    expected = [
        max(
            max(0, min(a[2], b[2]) - max(a[1], b[1])) / 251 if a[0] == b[0] else 0
            for b in train
        )
        for a in test
    ]
    assert np.allclose(overlap(test, train), expected)
    with pytest.raises(ValueError, match="lengths"):
        overlap(test, np.array([[0, 5, 10]]))


def test_coordinates_of_known_overlap(tmp_path):
    root = tmp_path / "promoters" / "coordinates"
    root.mkdir(parents=True)
    head = "id,region,start,end,strand\n"
    rows = {
        "test_negative": [
            "1,chr1,100,351,+",
            "2,chr2,100,351,+",
            "3,chrX,9,260,-",
            "4,chr1,900,1151,+",
        ],
        "train_negative": ["1,chr1,150,401,-", "2,chr2,340,591,+"],
        "test_positive": ["1,chr3,0,251,+"],
        "train_positive": ["1,chr1,0,251,+"],
    }
    for name, lines in rows.items():
        with gzip.open(root / f"{name}.csv.gz", "wt") as file:
            file.write(head + "\n".join(lines) + "\n")
    assert benchmark_overlap(tmp_path) == {"negative": [0.5, 0.25], "positive": [0.0, 0.0]}


def test_baselines_against_scikit_learn():
    linear, neighbours, metrics = (
        pytest.importorskip(f"sklearn.{name}")
        for name in ("linear_model", "neighbors", "metrics")
    )
    made = load("generated-sequences")
    x, y = spectrum(made.inputs, 3), made.labels
    near = neighbours.KNeighborsClassifier(1).fit(x[:400], y[:400]).predict(x[400:])
    # products of unit vectors order neighbours as distances do
    assert (nearest_neighbour(x[:400], y[:400], x[400:]).numpy() == near).mean() > 0.99
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    train, test = order[:400], order[400:]
    penalty = 1e-3
    model = linear.LogisticRegression(C=1 / (2 * penalty * 400), tol=1e-8, max_iter=5000)
    expected = model.fit(x[train], y[train]).predict(x[test])
    ours = logistic_regression(x[train], y[train], x[test], penalty)
    assert (ours.numpy() == expected).mean() > 0.98
    assert balanced_accuracy(ours, y[test]) == pytest.approx(
        metrics.balanced_accuracy_score(y[test], ours)
    )


def test_tables_of_the_offline_folder(tmp_path, monkeypatch):
    (tmp_path / "promoters").mkdir()
    (tmp_path / "ewt").mkdir()
    rows = [f"{s.lower()}\t{i % 2}" for i, s in enumerate(random_sequences(60))]
    (tmp_path / "promoters" / "human_nontata_test.tsv").write_text(
        "seq\tlabel\n" + "\n".join(rows) + "\n"
    )
    for part in ("train", "dev", "test"):
        (tmp_path / "ewt" / f"{part}.tsv").write_text("What\tPRON\n?\tPUNCT\n\nRun\tVERB\n")
    monkeypatch.setenv("PHYSATTN_DATA", str(tmp_path))
    made = load("promoters")
    assert len(made) == 60 and made.inputs == random_sequences(60)
    assert made.labels.tolist() == [0, 1] * 30 and set(made.split) == {
        "train",
        "dev",
        "test",
    }
    told = load("ewt")
    assert told.classes == ["PRON", "PUNCT", "VERB"] and len(told.of("dev")) == 2
    assert told.inputs[0] == ["What", "?"] and told.labels[0].tolist() == [0, 1]
    assert read_sentences(tmp_path / "ewt" / "dev.tsv")[1] == (["Run"], ["VERB"])


def test_a_folder_of_genomic_benchmarks(tmp_path):
    sequences = iter(random_sequences(90, 60))
    for split, word in itertools.product(("train", "test"), ("negative", "positive")):
        (tmp_path / split / word).mkdir(parents=True)
        for i in range(30 if split == "train" else 15):
            (tmp_path / split / word / f"{i}.txt").write_text(next(sequences))
    found = load("genomic-benchmarks", tmp_path)
    assert [len(found.of(part)) for part in ("train", "dev", "test")] == [54, 6, 30]
    assert found.labels[found.of("test")].tolist() == [0] * 15 + [1] * 15
    with pytest.raises(FileNotFoundError, match="train/negative"):
        load("genomic-benchmarks", tmp_path / "train")


def hub_folder(path, config, files):
    "A data set repository of the hub's form: a card that lists the files of a configuration."
    listed = "".join(
        f"  - split: {split}\n    path: {name}\n" for split, name in files.items()
    )
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n"
    (path / "README.md").write_text(card)


def test_gue_from_a_folder_of_its_form(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "gue"
    folder.mkdir()
    files = {part: f"{part}.csv" for part in ("train", "dev", "test")}
    for i, name in enumerate(files.values()):
        rows = [f"{s},{j % 2}" for j, s in enumerate(random_sequences(4 + i, 300))]
        (folder / name).write_text("sequence,label\n" + "\n".join(rows) + "\n")
    hub_folder(folder, "prom_300_notata", files)
    found = load("gue", folder)
    assert [len(found.of(part)) for part in files] == [4, 5, 6]
    assert found.inputs[:4] == random_sequences(4, 300) and found.labels[:4].tolist() == [
        0,
        1,
        0,
        1,
    ]


def test_conll_from_a_folder_of_its_form(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "conll"
    folder.mkdir()
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")),
        pos_tags=datasets.Sequence(datasets.ClassLabel(names=['"', "NNP", "VBZ"])),
    )
    rows = {"tokens": [["EU", "rejects"], [], ["EU"]], "pos_tags": [[1, 2], [], [1]]}
    files = {part: f"{part}.parquet" for part in ("train", "validation", "test")}
    for name in files.values():
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / name)
    hub_folder(folder, "conll2003", files)
    found = load("conll", folder)
    assert found.classes == ["NNP", "VBZ"]
    assert len(found) == 6 and found.inputs[0] == ["EU", "rejects"]
    assert found.labels[0].tolist() == [0, 1] and len(found.of("dev")) == 2


def test_lexicon_and_tables():
    lexicon = Lexicon([["The", "cat", "the"], ["cat", "bat"]])
    first, second = lexicon(["the", "The"])
    assert first[0] == second[0] > 2 and first[2] != second[2]  # same word, other shape
    assert lexicon(["bat"])[0, 0] == 0 and lexicon([""]).shape == (1, 3)
    ids = [torch.zeros(n, 3, dtype=torch.long) for n in (2, 5, 2)]
    labels = [torch.zeros(n, dtype=torch.long) for n in (2, 5, 2)]
    two, five = tables(ids, labels, np.array([0, 1, 2]))
    assert two.ids.shape == (1, 2, 2, 3) and two.index.tolist() == [0, 2]
    assert five.labels.shape == (1, 5)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: load("imagenet"), ValueError, "imagenet"),
        (lambda: clusters(["ACGT" * 20], 41), ValueError, "k = 41"),
        (lambda: bases(["ACG", "AC"]), ValueError, "lengths"),
        (lambda: load("ewt"), FileNotFoundError, "PHYSATTN_DATA"),
    ],
)
def test_bad_input_gets_a_sentence(call, error, sentence, monkeypatch):
    monkeypatch.delenv("PHYSATTN_DATA", raising=False)
    with pytest.raises(error, match=sentence):
        call()


def test_offline_hub_names_what_works(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match="load\\('ewt'\\)"):
        load("conll")
    with pytest.raises(FileNotFoundError, match="load\\('promoters'\\)"):
        load("gue")


def test_missing_libraries_name_their_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "genomic_benchmarks", None)
    monkeypatch.setitem(sys.modules, "genomic_benchmarks.loc2seq", None)
    for name in ("gue", "conll", "genomic-benchmarks"):
        with pytest.raises(ImportError, match=r"pip install physattn\[(hub|genomics)\]"):
            load(name)


def test_generated_data_have_what_they_promise():
    made = load("generated-sequences")
    assert isinstance(made, Examples) and len(made) == 600
    groups = clusters(made.inputs)
    assert len(set(groups[made.labels.numpy() == 0])) < 100
    assert data.generated_sequences(seed=3).inputs != made.inputs


def test_leak_is_found_in_generated_data_and_recorded_for_real_ones():
    quick = reproduce("quantum/leak")["generated-sequences"]["nearest neighbour"]
    assert quick["random"].value > quick["by cluster"].value + 0.1
    found = recall("quantum/leak")["promoters"]
    assert found["overlap"]["negative"][0] == pytest.approx(0.996, abs=5e-4)
    near = found["nearest neighbour"]
    assert (near["random"] - near["by cluster"]).sigma(0) > 10
