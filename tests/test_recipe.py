"""Recipes: what is accepted, what each mistake is told, and which source of a value wins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.errors import ModelError, RecipeError, UsageError
from edgekd.recipe import Recipe, load_recipe, recipe_to_toml
from edgekd.recipe_checks import DEFAULT_TERMS, LOSSES_OF, TASK_OF_LOSS
from edgekd.spec import Limits

ROOT = Path(__file__).parent.parent
MINIMAL = """
[data]
kind = "digits"
[teacher]
model = "resnet_teacher"
[student]
model = "cnn_s"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_recipe(text: str = MINIMAL, name: str = "fashion.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_recipe


def load(path: Path, *overrides: str, **environ: str) -> Recipe:
    return load_recipe(path, overrides=overrides, environ=environ).recipe


def refusal(path: Path, *overrides: str, **environ: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, *overrides, **environ)
    assert "pydantic" not in str(caught.value)
    assert "http" not in str(caught.value)
    return str(caught.value)


def test_a_minimal_recipe_gets_the_defaults(write) -> None:
    recipe = load(write())
    assert (recipe.name, recipe.task, recipe.seed, recipe.threads) == ("fashion", "classification", 0, 0)
    assert recipe.distill.precision == "auto"
    assert recipe.distill.baseline
    assert (recipe.export.opset, recipe.export.ir_version) == (18, 8)
    assert recipe.quantize.variants == ()
    assert recipe.limits.to_limits() == Limits()
    assert [(term.name, term.weight, dict(term.options)) for term in recipe.distill_terms] == [
        ("kd", 0.9, {"temperature": 4.0}),
        ("cross_entropy", 0.1, {}),
    ]


@pytest.mark.parametrize(
    ("task", "losses"),
    [
        ("multilabel", ["multilabel_kd", "binary_cross_entropy"]),
        ("regression", ["regression_kd", "mean_squared_error"]),
    ],
)
def test_each_task_has_its_own_default_terms(write, task: str, losses: list[str]) -> None:
    recipe = load(write(MINIMAL.replace('kind = "digits"', 'kind = "own:data"')), f"task={task}")
    assert [term.loss for term in recipe.distill_terms] == losses
    assert recipe.distill.terms == recipe.distill_terms


def test_a_recipe_does_not_change_after_loading(write) -> None:
    recipe = load(write())
    with pytest.raises(ValueError, match="frozen"):
        recipe.distill.epochs = 3  # type: ignore[misc]


def test_the_resolved_recipe_reads_back_to_an_equal_value(write, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    text = """
        version = 1
        description = "quotes \\" and a line\\nbreak"
        [data]
        kind = "image_folder"
        root = "images"
        labels = ["cat", "dog"]
        augment = {shift = 2, flip = true}
        [preprocess]
        steps = [{op = "decode"}, {op = "resize", size = [28, 28]}, {op = "normalize", mean = [0.1], std = [0.3]}]
        [teacher]
        model = "mine:teacher"
        args = {hidden = [512, 256], nested = {deep = [1.5]}}
        weights = "weights.safetensors"
        [student]
        model = "cnn_s"
        [[distill.terms]]
        loss = "kd"
        options = {temperature = 3.0}
        [limits]
        size_kb = 100
    """
    recipe = load(write(text))
    again = load(write(recipe_to_toml(recipe), name="resolved.toml"))
    assert again == recipe
    assert recipe.teacher.args["hidden"] == [512, 256]


def test_an_unknown_key_is_told_its_nearest_neighbour_and_the_file(write) -> None:
    text = refusal(write(MINIMAL + "[distill]\nepoch = 3\n"))
    assert text.startswith(
        "fashion.toml: unknown key 'distill.epoch'. Did you mean 'epochs'? Known keys: epochs, batch_size"
    )


def test_a_hyperparameter_in_the_wrong_table_is_told_its_place(write) -> None:
    text = refusal(write(MINIMAL + "[distill]\ntemprature = 3\n"))
    assert "unknown key 'distill.temprature'. Did you mean 'temperature'? Its place is" in text
    assert "'distill.terms.options.temperature'" in text
    assert "Its place is 'distill.terms.weight'" in refusal(write(MINIMAL + "[distill]\nalpha = 0.5\n"))
    assert "Its place is 'data.augment'" in refusal(write(MINIMAL + "[distill]\naugment = {shift = 1}\n"))


def test_an_unknown_key_in_a_list_of_tables_is_found(write) -> None:
    text = refusal(write(MINIMAL + '[[distill.terms]]\nloss = "kd"\nwieght = 2\n'))
    assert "unknown key 'distill.terms.0.wieght'. Did you mean 'weight'?" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distill.epochs=ten", 'distill.epochs: found "ten" (a text), expected a whole number'),
        ("distill.epochs=2.5", "distill.epochs: found 2.5 (a number), expected a whole number"),
        ("distill.epochs=true", "distill.epochs: found true (true or false), expected a whole number"),
        ("distill.epochs=0", "distill.epochs: found 0 (a whole number), expected a number of at least 1"),
        ("distill.lr=0", "distill.lr: found 0 (a whole number), expected a number above 0"),
        ("distill.lr=nan", "distill.lr: found nan (a number), expected a finite number"),
        ("distill.baseline=1", "distill.baseline: found 1 (a whole number), expected true or false"),
        ("distill.optimizer=adan", "expected 'adamw', 'adam' or 'sgd'"),
        ("task=clasification", "expected 'classification', 'multilabel', 'regression', 'embedding' or 'masked_lm'"),
        ("data.labels=[1, 2]", "data.labels.0: found 1 (a whole number), expected a text"),
        ("data.val_fraction=1.5", "expected a number below 1"),
        ("data.augment=2", "data.augment: found 2 (a whole number), expected a table"),
        ("teacher=[{model='a'}]", "(a list), expected a table"),
        ("student={}", "'student.model' is missing; expected model ="),
        ("name=a/b", "expected letters, digits, '.', '_' and '-' only"),
        ("export.opset=17", "expected a number of at least 18"),
        ("data.labels=['a', 1]", "data.labels.1: found 1 (a whole number), expected a text"),
        ("export.opset=25", "expected a number of at most 24"),
    ],
)
def test_a_wrong_value_is_told_the_place_what_was_found_and_what_was_expected(write, override, expected) -> None:
    text = refusal(write(), override)
    assert text.startswith(f"--set {override}: ")
    assert expected in text


def test_every_wrong_value_of_a_file_is_listed(write) -> None:
    text = refusal(write(MINIMAL + '[distill]\nepochs = "x"\nlr = -1\n'))
    assert [line.split(": ")[1] for line in text.splitlines()] == ["distill.epochs", "distill.lr"]
    assert all(line.startswith("fashion.toml: ") for line in text.splitlines())


def test_missing_tables_are_named_with_an_example(write) -> None:
    text = refusal(write("[data]\nkind = 'digits'\n"))
    assert "'teacher' is missing; expected [teacher] with model =" in text
    assert "'student' is missing; expected [student] with model =" in text


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (MINIMAL, ["version=2"], "version = 2, but this edgekd reads version 1; install a newer edgekd"),
        (MINIMAL, ["data.kind=digit"], "data.kind: found 'digit'. Did you mean 'digits'?"),
        (MINIMAL, ["task=regression"], "task = 'regression', but data.kind = 'digits' has one class per sample"),
        (MINIMAL, ["data.kind=arrays"], "data.root is missing: data.kind = 'arrays' needs the .npz or .csv file"),
        (MINIMAL, ["data.kind=image_folder"], "needs the folder of images; add --set data.root=PATH"),
        (MINIMAL, ["data.kind=arrays", "data.root=a.csv"], "data.target is missing: a .csv file needs the name"),
        (MINIMAL, ["data.val_fraction=0.6", "data.test_fraction=0.5"], "= 1.1: nothing is left to train on"),
        (MINIMAL, ["teacher={}"], "teacher has neither 'model' nor 'onnx'"),
        (MINIMAL, ["teacher.onnx=t.onnx"], "teacher has 'model' and 'onnx'; expected one of them"),
        (MINIMAL, ["teacher={url='a', logits='b', onnx='c'}"], "teacher has 'onnx' and 'logits' and 'url'"),
        (MINIMAL, ["teacher={logits='t.npz'}"], "teacher.licence is missing: teacher.logits is a black box"),
        (MINIMAL, ["teacher={logits='t.npz', licence='MIT', train={epochs=3}}"], "remove teacher.train"),
        (MINIMAL, ["teacher.request.batch_size=3"], "teacher.request says how a teacher.url is asked, but there is"),
        (MINIMAL, ["data.views=2"], "data.views = 2, but data.augment is empty: all views would be the same"),
        (MINIMAL, ["distill.cache=true", "data.augment={shift=1}"], "data.views is missing: distill.cache keeps the"),
        (MINIMAL, ["distill.cache_top_k=3"], "say how distill.cache keeps answers; add cache = true"),
        (MINIMAL, ["distill.cache=true", "teacher={logits='t.npz', licence='MIT'}"], "is such a file; remove one"),
        (MINIMAL, ["teacher={onnx='t.onnx'}"], "teacher.licence is missing: teacher.onnx is a black box"),
        (MINIMAL, ["teacher={onnx='t.onnx', licence=' '}"], "teacher.licence is missing"),
        (MINIMAL, ["teacher={onnx='t.onnx', licence='MIT', args={a=1}}"], "remove teacher.args"),
        (MINIMAL, ["distill.terms=[{loss='mean_squared_error'}]"], "'mean_squared_error' is for regression, but task"),
        (MINIMAL, ["distill.terms=[{loss='kd'}, {loss='kd'}]"], "two terms are called 'kd'; give each its own name"),
        (MINIMAL, ["distill.terms=[{loss='kd', weight=0}]"], "every weight is 0, so nothing would be learned"),
        (MINIMAL, ["preprocess.steps=[{op='scal'}]"], "preprocess.steps[0]: unknown op 'scal'. Did you mean 'scale'?"),
        (MINIMAL, ["preprocess.steps=[{op='scale'}, {op='decode'}]"], "'decode' stands after 'scale'"),
        (MINIMAL, ["postprocess.steps=[{op='softmx'}]"], "postprocess.steps[0]: unknown op 'softmx'. Did you mean"),
        (MINIMAL, ["postprocess.steps=[{op='sigmoid'}]"], "'sigmoid' makes no sense of the outputs of task = 'class"),
        (MINIMAL, ["benchmark.suite=quik"], "no suite is called 'quik'. Did you mean 'quick'?"),
        (MINIMAL, ["target.name=cpus"], "no target is called 'cpus'. Did you mean 'cpu'?"),
        (
            MINIMAL.replace('"digits"', '"a:b"'),
            ["task=regression", "teacher.train.label_smoothing=0.1"],
            "label_smoothing works for classification only",
        ),
    ],
)
def test_contradictions_are_found_before_any_work(write, text, overrides, expected) -> None:
    message = refusal(write(text), *overrides)
    assert message.startswith("fashion.toml: ")
    assert expected in message


def test_a_black_box_with_a_licence_is_accepted(write, tmp_path: Path) -> None:
    (tmp_path / "t.onnx").touch()
    text = MINIMAL.replace('model = "resnet_teacher"', 'onnx = "t.onnx"\nlicence = "MIT"')
    assert load(write(text)).teacher.onnx == str(tmp_path / "t.onnx")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("", "teacher.licence is missing: teacher.url is a black box"),
        ("ftp://host/path", "found ftp://host/path, expected https://HOST/PATH"),
        ("https://", "expected https://HOST/PATH"),
        ("https://host:port/", "is no URL"),
        ("http://elsewhere.example/x?a=1", "http://elsewhere.example/x would send the samples in the clear; use https"),
        ("https://me:secret@host/x", "https://host/x holds a credential, and recipes are kept and passed on; put it"),
        ("https://host/x?Token=secret", "https://host/x holds a credential"),
    ],
)
def test_a_url_that_must_not_be_used(write, request_: str, expected: str) -> None:
    url, licence = (request_, 'licence = "MIT"') if request_ else ("https://host/x", "")
    text = MINIMAL.replace('model = "resnet_teacher"', f'url = "{url}"\n{licence}')
    with pytest.raises(RecipeError) as caught:
        load(write(text))
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/x", "http://localhost:80/x", "http://127.0.0.2/x", "http://[::1]:8/x"])
def test_urls_that_may_be_used(write, url: str) -> None:
    text = MINIMAL.replace('model = "resnet_teacher"', f'url = "{url}"\nlicence = "MIT"')
    recipe = load(write(text))
    assert recipe.teacher.url == url
    assert recipe.kept == ("teacher",)
    assert recipe.teacher.is_finished
    assert not recipe.teacher.has_graph
    with pytest.raises(RecipeError, match=r"data\.views is missing: teacher.url keeps the teacher's answers"):
        load(write(text), "data.augment={shift=1}")
    assert load(write(text), "data.augment={shift=1}", "data.views=2").data.views == 2


def test_the_teacher_of_the_manual_is_valid(write) -> None:
    page = (ROOT / "export" / "README.md").read_text(encoding="utf-8")
    teacher = page.split("\n## Teachers\n")[1].split("```toml\n")[1].split("```")[0]
    recipe = load(write(MINIMAL.replace('[teacher]\nmodel = "resnet_teacher"\n', teacher)))
    assert recipe.teacher.request.headers == {"Authorization": "MY_VARIABLE"}
    assert recipe.teacher.request.per_s == 5


def test_insecure_http_only_when_asked_for(write) -> None:
    text = MINIMAL.replace('model = "resnet_teacher"', 'url = "http://elsewhere.example/x"\nlicence = "MIT"')
    assert load(write(text), "teacher.request.insecure=true").teacher.request.insecure


@pytest.mark.parametrize("key", ["teacher.weights", "student.weights"])
def test_weights_that_are_not_there_are_input_that_is_refused(write, key: str) -> None:
    with pytest.raises(ModelError, match=rf"{key}: there is no file .*nowhere\.pt") as caught:
        load(write(), f"{key}=nowhere.pt")
    assert caught.value.exit_code == 3
    with pytest.raises(ModelError, match=r"expected a file that ends in \.safetensors, \.pt, \.pth"):
        load(write(), f"{key}=model.pkl")
    recipe = load_recipe(write(), overrides=[f"{key}=nowhere.pt"], environ={}, check_files=False).recipe
    assert recipe_to_toml(recipe).count("nowhere.pt") == 1


def test_paths_in_a_recipe_start_at_its_folder_and_those_of_set_at_the_current_one(
    write, tmp_path, monkeypatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = MINIMAL.replace('kind = "digits"', 'kind = "image_folder"\nroot = "images"')
    assert load(write(text)).data.root == str(tmp_path / "images")
    assert load(write(text), "data.root=images").data.root == str(elsewhere / "images")
    assert load(write(text), f"data.root={tmp_path}").data.root == str(tmp_path)
    assert load(write(text), "data={kind='image_folder', root='more'}").data.root == str(elsewhere / "more")
    assert load_recipe(write(text), environ={}).folder == tmp_path
    (tmp_path / "mine.toml").write_text("")
    assert load(write(text + '[target]\nname = "mine.toml"\n')).target.name == str(tmp_path / "mine.toml")


def test_shipped_recipes_start_at_the_current_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("digits", environ={}).folder == tmp_path


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("distill.epochs=3", lambda r: r.distill.epochs, 3),
        ("distill.lr=1", lambda r: r.distill.lr, 1.0),
        ("description=a text = with equals", lambda r: r.description, "a text = with equals"),
        ('description="quoted"', lambda r: r.description, "quoted"),
        ("quantize.variants=int8_u8s8", lambda r: r.quantize.variants, ("int8_u8s8",)),
        ('quantize.variants=["fp16", "float32"]', lambda r: r.quantize.variants, ("fp16", "float32")),
        ("data.augment={shift = 2}", lambda r: r.data.augment, {"shift": 2}),
        ("teacher.args.hidden=[512, 256]", lambda r: r.teacher.args, {"hidden": [512, 256]}),
        ("distill.terms.0.weight=0.25", lambda r: r.distill_terms[0].weight, 0.25),
        ("distill.terms.0.options.temperature=8", lambda r: r.distill_terms[0].options, {"temperature": 8}),
        ("limits.size_kb=12", lambda r: r.limits.size_kb, 12.0),
    ],
)
def test_set_reads_its_value_as_toml_else_as_text(write, override, read, value) -> None:
    assert read(load(write(), override)) == value


def test_changing_one_default_term_leaves_the_others_and_the_defaults_alone(write) -> None:
    recipe = load(write(), "distill.terms.0.weight=0.25")
    assert [term.weight for term in recipe.distill_terms] == [0.25, 0.1]
    assert DEFAULT_TERMS["classification"][0]["weight"] == 0.9


def test_set_with_a_wrong_form_is_a_usage_error(write) -> None:
    with pytest.raises(UsageError, match=r"--set distill\.epochs: expected KEY=VALUE, for example"):
        load(write(), "distill.epochs")
    assert "distill.terms is a list of 2; expected a number from 0 to 1" in refusal(write(), "distill.terms.7.weight=1")
    assert "seed is 4, a value, and has no key 'x'" in refusal(write("seed = 4\n" + MINIMAL), "seed.x=1")
    assert refusal(write(), "distill.epoch=1").startswith("--set distill.epoch=1: unknown key 'distill.epoch'")


def test_precedence_is_set_then_environment_then_recipe(write) -> None:
    path = write("seed = 1\nthreads = 1\n" + MINIMAL.replace('"digits"', '"mnist"\nroot = "here"'))
    assert (load(path).seed, load(path).threads) == (1, 1)
    environ = {"EDGEKD_SEED": "2", "EDGEKD_THREADS": "2", "EDGEKD_DATA": "/from/environ"}
    recipe = load(path, **environ)
    assert (recipe.seed, recipe.threads, recipe.data.root) == (2, 2, "/from/environ")
    recipe = load(path, "seed=3", "threads=3", "data.root=/from/set", **environ)
    assert (recipe.seed, recipe.threads, recipe.data.root) == (3, 3, "/from/set")
    assert load(path, "data={kind='mnist', root='/from/set'}", **environ).data.root == "/from/set"
    assert refusal(path, EDGEKD_SEED="abc").startswith('EDGEKD_SEED=abc: seed: found "abc" (a text), expected a whole')


def test_the_data_variable_is_for_public_sets_only(write) -> None:
    assert load(write(), EDGEKD_DATA="/somewhere").data.root is None
    text = MINIMAL.replace('"digits"', '"image_folder"\nroot = "/mine"')
    assert load(write(text), EDGEKD_DATA="/somewhere").data.root == "/mine"


def test_data_that_are_not_here_are_looked_for_under_the_data_variable(write, tmp_path: Path, monkeypatch) -> None:
    shared = tmp_path / "shared"
    (shared / "texts").mkdir(parents=True)
    (shared / "texts" / "more.jsonl").write_text('{"text": "a", "label": "b"}\n')
    path = write(MINIMAL.replace('"digits"', '"text"\nroot = "texts"'))
    assert load(path, EDGEKD_DATA=str(shared)).data.root == str(shared / "texts")
    told = load(path, 'transfer={kind="text", root="texts/more.jsonl"}', EDGEKD_DATA=str(shared)).transfer
    assert told is not None
    assert told.root == str(shared / "texts" / "more.jsonl")
    (path.parent / "texts").mkdir()
    assert load(path, EDGEKD_DATA=str(shared)).data.root == str(path.parent / "texts"), "one's own comes first"
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("digits", environ={}).recipe.name == "digits", "a folder of that name is no recipe"


def test_files_that_are_no_recipes_are_refused(write, tmp_path: Path) -> None:
    assert "fashion.toml: not valid TOML: " in refusal(write("[data\n"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "binary.toml: not a text in UTF-8" in refusal(binary)
    assert "no recipe file" in refusal(tmp_path / "none.toml")
    assert "is a folder, expected a recipe" in refusal(tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe is called 'digit'\. Did you mean 'digits'\?"):
        load_recipe("digit", environ={})


def test_the_name_comes_from_the_file_in_a_form_that_fits_a_path(write) -> None:
    assert load(write(name="my recipe (2).toml")).name == "my-recipe-2"


def test_names_agree_with_the_training_floor() -> None:
    from edgekd.distill.execution import PRECISIONS
    from edgekd.distill.losses import LOSSES
    from edgekd.distill.optimization import OPTIMIZERS, SCHEDULES

    schema = Recipe.model_json_schema()["$defs"]
    for section in ("DistillSection", "TrainSection"):
        assert set(schema[section]["properties"]["optimizer"]["enum"]) == set(OPTIMIZERS)
        assert set(schema[section]["properties"]["schedule"]["enum"]) == set(SCHEDULES)
    assert set(schema["DistillSection"]["properties"]["precision"]["enum"]) == set(PRECISIONS)
    assert set(TASK_OF_LOSS) <= set(LOSSES)
    for task, terms in DEFAULT_TERMS.items():
        assert {TASK_OF_LOSS.get(term["loss"], task) for term in terms} <= {task, LOSSES_OF.get(task)}


def test_reading_a_recipe_imports_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; from edgekd.recipe import load_recipe; load_recipe('digits', environ={});"
        "sys.exit(', '.join({'torch', 'onnx', 'onnxruntime', 'sklearn'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
