"""The things on the mock cell's table: shapes and colours, once, for physics, layouts, success rules and the expert.

Every object stands on its own origin's height: placed with its origin at `rest_m` above a surface it just touches it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """A free object. Lengths [m], mass [kg]; `geoms` is MJCF relative to the object's origin."""

    rest_m: float  # height of the origin above the surface it stands on
    grasp_m: float  # height of the fingertips relative to the origin when they close on it
    width_m: float  # opening between fingers that hold it
    geoms: str


# Torsional and rolling friction [m] keep a round object from rolling over the table for seconds; real fruit does not.
_SOFT = 'condim="6" friction="1 0.02 0.003"'

THINGS: dict[str, Thing] = {
    "apple": Thing(
        rest_m=0.030,
        grasp_m=-0.010,
        width_m=0.060,
        geoms=f"""
        <geom type="sphere" size="0.030" rgba="0.80 0.06 0.08 1" mass="0.10" {_SOFT}/>
        <geom type="capsule" fromto="0 0 0.028 0.004 0 0.040" size="0.003" rgba="0.30 0.18 0.08 1" mass="0.0001"
              contype="0" conaffinity="0"/>""",
    ),
    "pear": Thing(
        rest_m=0.027,
        grasp_m=-0.008,
        width_m=0.054,
        # The neck weighs next to nothing, so that the pear rights itself.
        geoms=f"""
        <geom type="sphere" size="0.027" rgba="0.68 0.80 0.12 1" mass="0.10" {_SOFT}/>
        <geom type="capsule" fromto="0 0 0.018 0 0 0.036" size="0.015" rgba="0.68 0.80 0.12 1" mass="0.002"
              {_SOFT}/>""",
    ),
    "cube": Thing(
        rest_m=0.022,
        grasp_m=-0.006,
        width_m=0.044,
        geoms=f"""
        <geom type="box" size="0.022 0.022 0.022" rgba="0.10 0.25 0.80 1" mass="0.08" {_SOFT}/>""",
    ),
    "can": Thing(
        rest_m=0.028,
        grasp_m=-0.008,
        width_m=0.048,
        geoms=f"""
        <geom type="cylinder" size="0.024 0.028" rgba="0.45 0.15 0.60 1" mass="0.10" {_SOFT}/>""",
    ),
}

PLATE_TOP_M = 0.006  # height of the plate's upper face above the table
PLATE_RADIUS_M = 0.080  # to the middle of the rim
PLATE_RIM_M = 0.014  # height of the rim above the table
