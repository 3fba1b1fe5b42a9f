"""Calcium movies: cells, traces, activity and spikes."""

from sortcore.optical.movie.demix import DemixConfig, demix
from sortcore.optical.movie.reading import open_movie
from sortcore.optical.movie.records import Demixed, MovieResult
from sortcore.optical.movie.saving import load_movie, save_movie
from sortcore.optical.movie.sort import MovieConfig, sort_movie

__all__ = ["DemixConfig", "Demixed", "MovieConfig", "MovieResult", "demix", "load_movie", "open_movie", "save_movie", "sort_movie"]
