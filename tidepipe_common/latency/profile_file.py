"""Profiles as files: a CSV of two columns that anyone can write, or a JSON object with all that was measured.

`tidepipe profile` writes both, NAME.csv and NAME.json. Who names the CSV gets the JSON beside it, as long as
the CSV is still the one that it was written with.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.linear import MeasuredLinear
from tidepipe_common.latency.profile import Points, Profile, ProfileTerms, rising
from tidepipe_common.regular_files import read_text, why_unreadable

FORMAT = "tidepipe-profile/1"


def read_profile(path: Path) -> Profile:
    """A profile from NAME.json or NAME.csv. ConfigError says what is wrong with it, and where."""
    text = _read(path)
    if path.suffix == ".json":
        return _from_json(text, path)
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            written_with = json.loads(_read(beside)).get("csv_sha256")
        except (ValueError, AttributeError):
            written_with = None
        if written_with == _digest(text):
            return _from_json(_read(beside), beside)
    return Profile(_from_csv(text, path))


def write_profile(profile: Profile, about: Mapping[str, Any], path: Path) -> tuple[Path, Path]:
    """Write NAME.csv and NAME.json; returns both paths. about: what was measured, and on what."""
    csv_path, json_path = path.with_suffix(".csv"), path.with_suffix(".json")
    table = "".join(f"{tokens},{ms:.4f}\n" for tokens, ms in profile.table)
    text = "tokens,milliseconds\n" + table
    fields = {"format": FORMAT, **about, **profile_fields(profile), "csv_sha256": _digest(text)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        csv_path.write_text(text, encoding="utf-8")
        json_path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the profile {path}: {error.strerror or error}") from error
    return csv_path, json_path


def profile_fields(profile: Profile) -> dict[str, Any]:
    """As JSON values; times in milliseconds unless the name says otherwise."""
    fields: dict[str, Any] = {"table": [list(point) for point in profile.table]}
    if (terms := profile.terms) is not None:
        fields["terms"] = {
            "layers": [list(point) for point in terms.layers],
            "head": [list(point) for point in terms.head],
            "fixed": terms.fixed,
            "row": terms.row,
            "kv_token_us": terms.kv_token_us,
            "pair_us": terms.pair_us,
        }
    return fields


def profile_from_fields(fields: Mapping[str, Any]) -> Profile:
    """The reverse of `profile_fields`. KeyError, TypeError, ValueError or ConfigError if it is none."""
    terms = fields.get("terms")
    profile = Profile(_points(fields["table"]), _terms(terms) if terms is not None else None)
    MeasuredLinear(profile.table)
    return profile


def _terms(fields: Mapping[str, Any]) -> ProfileTerms:
    numbers = {name: float(fields[name]) for name in ("fixed", "row", "kv_token_us", "pair_us")}
    if min(numbers.values()) < 0:
        raise ValueError("a time is negative")
    terms = ProfileTerms(layers=_points(fields["layers"]), head=_points(fields["head"]), **numbers)
    for points in (terms.layers, terms.head):
        MeasuredLinear(points)
    return terms


def _points(rows: Any) -> Points:
    return rising([(int(size), float(ms)) for size, ms in rows])


def _from_json(text: str, path: Path) -> Profile:
    try:
        fields = json.loads(text)
        if fields.get("format") != FORMAT:
            raise ConfigError(f"its format is {fields.get('format')!r}, this version reads {FORMAT!r}")
        return profile_from_fields(fields)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path} is not a latency profile: {reason}; see `tidepipe profile`") from error


def _from_csv(text: str, path: Path) -> Points:
    points: list[tuple[int, float]] = []
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or (number == 1 and not _is_number(row[0])):
            continue
        try:
            points.append((int(float(row[0])), float(row[1])))
        except (ValueError, IndexError, OverflowError) as error:
            raise ConfigError(
                f"{path}, line {number}: expected tokens,milliseconds; got {','.join(row)}"
            ) from error
    try:
        MeasuredLinear(points)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return tuple(points)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the latency profile {path}: {why_unreadable(error)}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
