"""Ways into sortcore: the SpikeInterface plug-in and the command line.

`import sorters` makes "sortcore" one of SpikeInterface's sorters, whether SpikeInterface is imported before or after:

    import sorters
    from spikeinterface.sorters import run_sorter
    sorting = run_sorter("sortcore", recording, folder="sorted")

Nothing heavy is imported here: SpikeInterface and torch come in when they are used.
"""

from sorters.registration import register

__version__ = "0.1.0"
__all__ = ["register"]

register()
