"""A tenant has a label of its own if it was configured, came early, or is served most of late."""

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


def test_labels_go_to_the_tenants_that_are_served_most() -> None:
    """Whoever gained clearly more since the last renewal takes the label of who gained least."""
    labels = TenantLabels(max_tenants=2)
    assert [labels.label(name) for name in "ab"] == ["a", "b"]

    labels.renew({"a": 10.0, "b": 1.0, "c": 15.0, "d": 5.0})

    assert [labels.label(name) for name in "abcd"] == ["a", REST, "c", REST]


def test_a_little_more_does_not_take_a_label_away() -> None:
    """Two tenants that are served alike do not take turns at one label."""
    labels = TenantLabels(max_tenants=1)
    labels.label("a")

    labels.renew({"a": 10.0, "b": 15.0})

    assert [labels.label(name) for name in "ab"] == ["a", REST]


def test_a_configured_tenant_keeps_its_label_while_idle() -> None:
    """An operator looks for the tenants that are written down, above all when they are quiet."""
    labels = TenantLabels(configured=["ours"], max_tenants=1)

    labels.renew({"flood": 1e9})

    assert [labels.label(name) for name in ("ours", "flood")] == ["ours", REST]
