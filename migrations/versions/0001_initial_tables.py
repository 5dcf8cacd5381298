"""Initial tables

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

import broker.db.types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("actor_id", sa.String(length=32), nullable=False),
        sa.Column("actor_name", sa.String(length=64), nullable=False),
        sa.Column("source_ip", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("object_type", sa.String(length=32), nullable=False),
        sa.Column("object_id", sa.String(length=64), nullable=False),
        sa.Column(
            "before",
            sa.JSON(),
            nullable=True,
        ),
        sa.Column(
            "after",
            sa.JSON(),
            nullable=True,
        ),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_action_id", "audit", ["action", "id"], unique=False)
    op.create_index("ix_audit_actor_id_id", "audit", ["actor_id", "id"], unique=False)
    op.create_index("ix_audit_object_type_object_id", "audit", ["object_type", "object_id"], unique=False)
    op.create_table(
        "clusters",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("polled_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("accounting_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("slurm_version", sa.String(length=32), nullable=True),
        sa.Column("trouble", sa.String(), nullable=True),
        sa.Column("trouble_since", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_clusters")),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "idempotency",
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(
        "ix_idempotency_user_id_created_at", "idempotency", ["user_id", "created_at"], unique=False
    )
    op.create_table(
        "images",
        sa.Column("cluster", sa.String(length=64), nullable=False),
        sa.Column("reference", sa.String(length=500), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("sif", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "reference", name=op.f("pk_images")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("holder", sa.String(length=100), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("expires_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("username", sa.String(length=64), nullable=False),
        sa.Column("display_name", sa.String(length=128), nullable=False),
        sa.Column("password_hash", sa.String(length=256), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("must_change_password", sa.Boolean(), nullable=False),
        sa.Column("token_version", sa.Integer(), nullable=False),
        sa.Column("unix_account", sa.String(length=32), nullable=True),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("row_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
    )
    op.create_table(
        "pipelines",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("external_id", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=32), nullable=False),
        sa.Column("latest_version", sa.Integer(), nullable=False),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_pipelines_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pipelines")),
        sa.UniqueConstraint("tenant", "external_id", name=op.f("uq_pipelines_tenant_external_id")),
    )
    op.create_index("ix_pipelines_external_id", "pipelines", ["external_id"], unique=False)
    op.create_index("ix_pipelines_owner_id", "pipelines", ["owner_id"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner_id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("object_key", sa.String(length=200), nullable=False),
        sa.Column("object_sha256", sa.String(length=64), nullable=False),
        sa.Column("object_size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("stored_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_uploads_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_owner_id", "uploads", ["owner_id"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("pipeline_id", sa.String(length=32), nullable=False),
        sa.Column("component", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("latest_version", sa.Integer(), nullable=False),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipelines.id"], name=op.f("fk_models_pipeline_id_pipelines")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("pipeline_id", "component", name=op.f("uq_models_pipeline_id_component")),
    )
    op.create_table(
        "pipeline_versions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("pipeline_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.String(length=80), nullable=False),
        sa.Column("spec_version", sa.String(length=128), nullable=False),
        sa.Column("created_by", sa.String(length=32), nullable=False),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name=op.f("fk_pipeline_versions_created_by_users")
        ),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipelines.id"], name=op.f("fk_pipeline_versions_pipeline_id_pipelines")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pipeline_versions")),
        sa.UniqueConstraint("pipeline_id", "number", name=op.f("uq_pipeline_versions_pipeline_id_number")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("cluster", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=32), nullable=False),
        sa.Column("pipeline_id", sa.String(length=32), nullable=False),
        sa.Column("pipeline_version_id", sa.String(length=32), nullable=False),
        sa.Column("test_run_ref", sa.String(length=32), nullable=True),
        sa.Column(
            "overrides",
            sa.JSON(),
            nullable=False,
        ),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("phase", sa.String(length=12), nullable=False),
        sa.Column("approval", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("auto_retries", sa.Integer(), nullable=False),
        sa.Column(
            "resolved",
            sa.JSON(),
            nullable=True,
        ),
        sa.Column("error_code", sa.String(length=40), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("trouble", sa.String(), nullable=True),
        sa.Column("cancel_requested_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("cancelled_by", sa.String(length=32), nullable=True),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("started_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("ended_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("next_try_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("removed_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("event_seq", sa.Integer(), nullable=False),
        sa.Column("row_version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_runs_owner_id_users")),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipelines.id"], name=op.f("fk_runs_pipeline_id_pipelines")
        ),
        sa.ForeignKeyConstraint(
            ["pipeline_version_id"],
            ["pipeline_versions.id"],
            name=op.f("fk_runs_pipeline_version_id_pipeline_versions"),
        ),
        sa.ForeignKeyConstraint(["test_run_ref"], ["runs.id"], name=op.f("fk_runs_test_run_ref_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("number", name=op.f("uq_runs_number")),
    )
    op.create_index("ix_runs_cluster_phase", "runs", ["cluster", "phase"], unique=False)
    op.create_index("ix_runs_owner_id_id", "runs", ["owner_id", "id"], unique=False)
    op.create_index("ix_runs_tenant_id", "runs", ["tenant", "id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("component", sa.String(length=63), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("slurm_job_id", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("culprit", sa.String(length=63), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("nodes", sa.String(), nullable=True),
        sa.Column(
            "resources",
            sa.JSON(),
            nullable=False,
        ),
        sa.Column("submitted_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("started_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("ended_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("observed_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("unknown_since", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("reap", sa.Boolean(), nullable=False),
        sa.Column("storing", sa.String(length=8), nullable=False),
        sa.Column("store_tries", sa.Integer(), nullable=False),
        sa.Column("store_next_try_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("store_error", sa.String(), nullable=True),
        sa.Column("output_dir", sa.String(), nullable=True),
        sa.Column("manifest_key", sa.String(), nullable=True),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("stored_files", sa.Integer(), nullable=True),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=True),
        sa.Column(
            "metrics",
            sa.JSON(),
            nullable=True,
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_jobs_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("name", name=op.f("uq_jobs_name")),
        sa.UniqueConstraint("run_id", "component", "attempt", name=op.f("uq_jobs_run_id_component_attempt")),
    )
    op.create_index("ix_jobs_slurm_job_id", "jobs", ["slurm_job_id"], unique=False)
    op.create_index("ix_jobs_storing", "jobs", ["storing"], unique=False)
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column(
            "data",
            sa.JSON(),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_events_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_run_events")),
    )
    op.create_table(
        "run_holds",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=12), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("since", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_holds_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "kind", name=op.f("pk_run_holds")),
    )
    op.create_table(
        "submissions",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("plan_hash", sa.String(length=80), nullable=False),
        sa.Column("intended_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.Column("submitted_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.Column("released_at", broker.db.types.UTCDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_submissions_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_submissions")),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("model_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("owner_id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("artifact", sa.String(), nullable=False),
        sa.Column(
            "metrics",
            sa.JSON(),
            nullable=True,
        ),
        sa.Column(
            "training",
            sa.JSON(),
            nullable=False,
        ),
        sa.Column("manifest_key", sa.String(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", broker.db.types.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_model_versions_job_id_jobs")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_model_versions_model_id_models")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_model_versions_owner_id_users")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_model_versions_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_versions")),
        sa.UniqueConstraint("job_id", name=op.f("uq_model_versions_job_id")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_model_versions_model_id_number")),
    )
    op.create_index("ix_model_versions_tenant_id", "model_versions", ["tenant", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_model_versions_tenant_id", table_name="model_versions")
    op.drop_table("model_versions")
    op.drop_table("submissions")
    op.drop_table("run_holds")
    op.drop_table("run_events")
    op.drop_index("ix_jobs_storing", table_name="jobs")
    op.drop_index("ix_jobs_slurm_job_id", table_name="jobs")
    op.drop_table("jobs")
    op.drop_index("ix_runs_tenant_id", table_name="runs")
    op.drop_index("ix_runs_owner_id_id", table_name="runs")
    op.drop_index("ix_runs_cluster_phase", table_name="runs")
    op.drop_table("runs")
    op.drop_table("pipeline_versions")
    op.drop_table("models")
    op.drop_index("ix_uploads_owner_id", table_name="uploads")
    op.drop_table("uploads")
    op.drop_index("ix_pipelines_owner_id", table_name="pipelines")
    op.drop_index("ix_pipelines_external_id", table_name="pipelines")
    op.drop_table("pipelines")
    op.drop_table("users")
    op.drop_table("leases")
    op.drop_table("images")
    op.drop_index("ix_idempotency_user_id_created_at", table_name="idempotency")
    op.drop_table("idempotency")
    op.drop_table("counters")
    op.drop_table("clusters")
    op.drop_index("ix_audit_object_type_object_id", table_name="audit")
    op.drop_index("ix_audit_actor_id_id", table_name="audit")
    op.drop_index("ix_audit_action_id", table_name="audit")
    op.drop_table("audit")
