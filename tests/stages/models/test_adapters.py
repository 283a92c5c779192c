import json

import tiny

from stages.models.adapters import load_policy


def test_an_adapters_files_do_not_contain_the_path_of_its_base(tmp_path):
    """The same inputs in two folders give identical artifacts."""
    artifacts = []
    for place in ("here", "there"):
        base = tiny.base_artifact(tmp_path / place / "base")
        artifact = tiny.policy_artifact(tmp_path / place / "sft", base)
        assert load_policy(base, artifact, "cpu").peft_config["default"].r == 2
        artifacts.append({path.name: path.read_bytes() for path in artifact.file("adapter").iterdir()})
    assert artifacts[0] == artifacts[1]
    config = json.loads(artifacts[0]["adapter_config.json"])
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    assert isinstance(config["target_modules"], list)
