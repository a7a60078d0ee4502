"""The sub-commands of `alinfik-distill`."""

from pydantic_settings import BaseSettings, CliApp, CliSubCommand

from alinfik.distill.evaluate import Evaluate
from alinfik.distill.explain import Explain
from alinfik.distill.label import Label
from alinfik.distill.settings import SETTINGS
from alinfik.distill.train import Train


class Distill(BaseSettings):
    """Labels text with LinFiK, distils a proxy from the labels, and says how good the proxy is.

    --config FILE.toml and ALINFIK_… in the environment set any option too; flags win over both.
    """

    model_config = SETTINGS

    label: CliSubCommand[Label]
    train: CliSubCommand[Train]
    evaluate: CliSubCommand[Evaluate]
    explain: CliSubCommand[Explain]

    def cli_cmd(self) -> None:
        """Run the sub-command."""
        CliApp.run_subcommand(self, cli_exit_on_error=False)
