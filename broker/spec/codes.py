"""Every code that a problem with a spec can carry, with what it means: the documentation is made from it."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Stable names of what can be wrong with a spec; programs compare them, people read `description`."""

    description: str

    def __new__(cls, value: str, description: str = "") -> Code:
        """Make a member of its name and what it means."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    # The document
    NOT_UTF8 = "not_utf8", "The bytes are not UTF-8 text."
    NOT_JSON = "not_json", "The text is not JSON; the sentence gives line and column."
    TOO_LARGE = "too_large", "The document, a list or a collection of texts is larger than its limit."
    TOO_DEEP = "too_deep", "Objects and lists are nested deeper than the limit."
    DUPLICATE_KEY = "duplicate_key", "One JSON object has the same key twice; only one of them could count."
    TOO_MANY_PROBLEMS = "too_many_problems", "More is wrong than is listed; mend these first."

    # Any value
    MISSING_FIELD = "missing_field", "A field that must be there is not."
    UNKNOWN_FIELD = "unknown_field", "A field that specs do not have; often a slip of the pen."
    WRONG_TYPE = "wrong_type", "The value is of another JSON type than the field's."
    BAD_VALUE = "bad_value", "The value does not have the form that the field needs."
    NOT_ALLOWED = "not_allowed", "The value is not among those the field allows."
    TOO_LONG = "too_long", "A text is longer than its limit."
    TOO_SHORT = "too_short", "A text or list is shorter than its limit, mostly: empty."
    FORBIDDEN_CHARACTER = (
        "forbidden_character",
        "A text holds a character that can't be carried: NUL, half a surrogate pair, a control character.",
    )
    OUT_OF_RANGE = "out_of_range", "A number is smaller or larger than the field allows."
    NOT_A_NUMBER = "not_a_number", "NaN and Infinity are no JSON numbers."
    CONFLICTING_FIELDS = "conflicting_fields", "Two fields are given that exclude each other."

    # Fields with a language of their own
    BAD_MEMORY = "bad_memory", "The text is no quantity of memory such as 128GB."
    BAD_TIME = "bad_time", "The text is no span of time such as 24h, 90m or 1-12:00:00."
    BAD_IMAGE = "bad_image", "The image reference can't name an image in a registry, or a .sif file."
    BAD_NAME = "bad_name", "The name has characters or a length that names may not have."
    BAD_PATH = (
        "bad_path",
        "The path is relative where it must be absolute, or the reverse, or has `.` or `..` in it.",
    )
    BAD_GIT_URL = "bad_git_url", "The git address is not https or ssh, or carries a password."
    RESERVED_NAME = "reserved_name", "The broker uses this name itself."
    SECRET_REF_UNSUPPORTED = (
        "secret_ref_unsupported",
        "References to secrets are not accepted here; a value would end up in scripts and hashes.",
    )
    NOT_DIVISIBLE = (
        "not_divisible",
        "What a component asks for over all its nodes does not divide evenly by their number.",
    )

    # The graph
    DUPLICATE_NAME = "duplicate_name", "Two components have the same name."
    UNKNOWN_COMPONENT = "unknown_component", "Something names a component that the spec does not have."
    SELF_LOOP = "self_loop", "An edge leads from a component to itself."
    DUPLICATE_EDGE = "duplicate_edge", "The same edge stands there twice."
    CYCLE = "cycle", "Components wait for each other in a circle; the sentence shows the path."

    # Found by the compiler
    TIME_OVER_LIMIT = "time_over_limit", "The time asked for is more than the cluster allows."
    IMAGE_NOT_RESOLVED = "image_not_resolved", "No digest is known for the image of a component."
    CODE_NOT_RESOLVED = "code_not_resolved", "No commit or checksum is known for the code of a component."
    SCRIPT_TOO_LARGE = "script_too_large", "The batch script would be larger than Slurm accepts (4 MB)."

    # Warnings: the spec runs, but not quite as written
    RESERVED_VARIABLE = (
        "reserved_variable",
        "Warning: the variable is set by Slurm or the broker; the spec's value is not used.",
    )
    UNUSED_GPU_TYPE = "unused_gpu_type", "Warning: a GPU type is named but no GPU is asked for."
    ORDER_CONTRADICTS_WORKFLOW = (
        "order_contradicts_workflow",
        "Warning: an edge leads to a component of lower order; the edges decide, not the order.",
    )
