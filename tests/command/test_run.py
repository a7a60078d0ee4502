"""What every console command promises: exit codes, one-line errors, the order of its settings."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import PositiveInt
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSubCommand,
    SettingsConfigDict,
)

from alinfik.command import CommandError, FailedError, run

SETTINGS = SettingsConfigDict(
    env_prefix="ALINFIK_", cli_kebab_case=True, cli_avoid_json=True, cli_hide_none_type=True
)


class Add(BaseSettings):
    """Add numbers."""

    model_config = SETTINGS

    first: CliPositionalArg[int]
    second_number: PositiveInt = 1

    def cli_cmd(self):
        print(self.first + self.second_number)


class Fail(BaseSettings):
    """Fail in a way of one's choice."""

    model_config = SETTINGS

    how: str = "bad input"

    def cli_cmd(self):
        match self.how:
            case "bad input":
                raise CommandError("pool.jsonl line 7: not\nJSON")
            case "failed":
                raise FailedError("127.0.0.1:1: nobody answers")
            case "interrupt":
                raise KeyboardInterrupt
            case defect:
                raise RuntimeError(defect)


class Calculator(BaseSettings):
    """Calculates."""

    model_config = SETTINGS | SettingsConfigDict(cli_prog_name="calculator")

    add: CliSubCommand[Add]
    fail: CliSubCommand[Fail]

    def cli_cmd(self):
        CliApp.run_subcommand(self, cli_exit_on_error=False)


class Desk(BaseSettings):
    """Has a sub-command that has sub-commands."""

    model_config = SETTINGS | SettingsConfigDict(cli_prog_name="desk")

    calculator: CliSubCommand[Calculator]

    def cli_cmd(self):
        CliApp.run_subcommand(self, cli_exit_on_error=False)


class Several(BaseSettings):
    """Takes several names."""

    model_config = SETTINGS | SettingsConfigDict(cli_prog_name="several")

    name: list[str] = []

    def cli_cmd(self):
        print(*self.name)


class Single(BaseSettings):
    """Has no sub-commands."""

    model_config = SETTINGS | SettingsConfigDict(cli_prog_name="single")

    bundle: str
    second_number: PositiveInt = 1

    def cli_cmd(self):
        print(self.bundle, self.second_number)


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.delenv("ALINFIK_CONFIG", raising=False)

    def call(command, *arguments):
        with pytest.raises(SystemExit) as exit_:
            run(command, arguments)
        output = capsys.readouterr()
        return exit_.value.code, output.out, output.err

    return call


def test_done_is_0(call):
    assert call(Calculator, "add", "2", "--second-number", "3") == (0, "5\n", "")


def test_bad_input_is_2_and_one_line(call):
    assert call(Calculator, "fail") == (2, "", "calculator: pool.jsonl line 7: not JSON\n")


def test_failed_is_1_and_one_line(call):
    code, _, error = call(Calculator, "fail", "--how", "failed")
    assert (code, error) == (1, "calculator: 127.0.0.1:1: nobody answers\n")


def test_interrupted_is_130(call):
    code, _, error = call(Calculator, "fail", "--how", "interrupt")
    assert (code, error) == (130, "calculator: interrupted\n")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="defect"):
        run(Calculator, ["fail", "--how", "defect"])


def test_a_missing_subcommand_is_2_with_the_help(call):
    code, output, error = call(Calculator)
    assert (code, output) == (2, "")
    assert "usage: calculator [-h] {add,fail} ..." in error
    assert error.splitlines()[-1] == "calculator: CLI subcommand is required {add, fail}"


def test_help_is_0(call):
    code, output, _ = call(Calculator, "add", "--help")
    assert code == 0
    assert "--second-number" in output


@pytest.mark.parametrize("arguments", [["bogus"], ["add", "1", "--bogus", "3"], ["add"]])
def test_unknown_and_missing_arguments_are_2(call, arguments):
    code, _, error = call(Calculator, *arguments)
    assert code == 2
    assert "error:" in error


def test_a_wrong_value_is_named_by_its_flag(call):
    code, _, error = call(Calculator, "add", "1", "--second-number", "0")
    assert code == 2
    assert error.startswith("calculator: --second-number: Input should be greater than 0 (got '0')")


def test_a_wrong_value_of_a_sub_commands_sub_command_is_named_by_its_flag(call):
    code, _, error = call(Desk, "calculator", "add", "1", "--second-number", "0")
    assert code == 2
    assert error.startswith("desk: --second-number: Input should be greater than 0 (got '0')")


def test_a_list_of_the_environment_is_json_and_the_error_says_so(call, monkeypatch):
    monkeypatch.setenv("ALINFIK_NAME", '["a", "b"]')
    assert call(Several) == (0, "a b\n", "")
    monkeypatch.setenv("ALINFIK_NAME", "a")
    code, _, error = call(Several)
    assert code == 2
    assert error.startswith('several: ALINFIK_NAME in the environment is a list; write ["one", "')


def test_a_missing_setting_is_named_by_its_flag(call):
    assert call(Single) == (2, "", "single: --bundle is required. See --help.\n")


@pytest.fixture(params=["flag", "environment"])
def config(request, tmp_path, monkeypatch):
    """Names a configuration file in either of the two ways; returns the flags that do so."""

    def config(text):
        path = tmp_path / "config.toml"
        path.write_text(text)
        if request.param == "flag":
            return ["--config", str(path)]
        monkeypatch.setenv("ALINFIK_CONFIG", str(path))
        return []

    return config


def test_flags_outrank_environment_outranks_file(call, config, monkeypatch):
    flags = config('bundle = "from file"\nsecond_number = 2')
    assert call(Single, *flags)[1] == "from file 2\n"
    monkeypatch.setenv("ALINFIK_SECOND_NUMBER", "3")
    assert call(Single, *flags)[1] == "from file 3\n"
    assert call(Single, *flags, "--second-number", "4")[1] == "from file 4\n"


def test_subcommands_rank_their_settings_alike(call, config, monkeypatch):
    flags = config("[add]\nsecond_number = 2\n[fail]\nhow = 'failed'")
    assert call(Calculator, *flags, "add", "10")[1] == "12\n"
    monkeypatch.setenv("ALINFIK_SECOND_NUMBER", "3")
    assert call(Calculator, *flags, "add", "10")[1] == "13\n"
    assert call(Calculator, *flags, "add", "10", "--second-number", "4")[1] == "14\n"
    assert call(Calculator, *flags, "fail")[0] == 1


def test_a_table_does_not_select_its_subcommand(call, config):
    flags = config("[fail]\nhow = 'failed'")
    assert call(Calculator, *flags)[0] == 2
    assert call(Calculator, *flags, "add", "10")[1] == "11\n"


def test_the_file_is_checked_like_flags(call, config):
    flags = config("[add]\nsecond_number = 0")
    assert (
        "--second-number: Input should be greater than 0" in call(Calculator, *flags, "add", "1")[2]
    )


def test_a_sub_command_in_the_file_is_a_table(call, config):
    code, _, error = call(Calculator, *config("add = 3"), "add", "1")
    assert code == 2
    assert error.endswith("--config: add is a sub-command; its settings stand in [add]\n")


def test_an_unknown_setting_in_the_file_is_named(call, config):
    code, _, error = call(Single, *config('bundle = "b"\nbundel = "c"'))
    assert code == 2
    assert "sets bundel, which is no setting here" in error


def test_a_file_that_is_not_there_or_not_toml_is_2(call, tmp_path):
    assert call(Single, "--config", str(tmp_path / "no"))[2].endswith("no: no such file\n")
    broken = tmp_path / "broken.toml"
    broken.write_text("bundle = ")
    code, _, error = call(Single, f"--config={broken}")
    assert code == 2
    assert "broken.toml: not TOML (" in error


@pytest.mark.parametrize("numbers", [2, 1_000_000])
def test_a_reader_that_leaves_ends_the_command_quietly(numbers):
    """Also where all that is left is still in a buffer when the command is done."""
    source = textwrap.dedent(f"""
        import sys
        from alinfik.command import run
        from pydantic_settings import BaseSettings

        class Count(BaseSettings):
            def cli_cmd(self):
                print(0, flush=True)
                sys.stdin.read()
                for number in range({numbers}):
                    print(number)

        run(Count, [])
    """)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", source], **pipes, text=True) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, as Linux has")
def test_a_full_disk_is_one_line():
    source = textwrap.dedent("""
        from alinfik.command import run
        from pydantic_settings import BaseSettings

        class Count(BaseSettings):
            def cli_cmd(self):
                for number in range(100_000):
                    print(number)

        run(Count, [])
    """)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "-c: what it writes: No space left on device\n")
