"""Segmenter engines: export, quantise, build, verify, and one `Session` for every runtime."""

from segmenter_engines.sessions import ENGINES, Session, open_session

__all__ = ["ENGINES", "Session", "open_session"]
