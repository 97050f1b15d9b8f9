"""A tenant has a label of its own if it was configured or came early."""

from ops.metrics.tenant_labels import REST, TenantLabels


def test_the_first_tenants_have_labels_of_their_own_and_keep_them() -> None:
    """Labels go to the tenants that come first; those that come later share one."""
    labels = TenantLabels(max_tenants=2)

    assert [labels.label(name) for name in "abcab"] == ["a", "b", REST, "a", "b"]


def test_a_configured_tenant_always_has_its_own_label() -> None:
    """Invented names cannot take a configured tenant's label away."""
    labels = TenantLabels(configured=["ours"], max_tenants=2)

    assert [labels.label(name) for name in ("x", "y", "ours")] == ["x", REST, "ours"]


def test_configured_tenants_may_be_more_than_the_limit() -> None:
    """The limit is on names that clients think up, not on those the operator wrote down."""
    labels = TenantLabels(configured=["a", "b", "c"], max_tenants=2)

    assert [labels.label(name) for name in "abcd"] == ["a", "b", "c", REST]
