#!/usr/bin/env bash
# Checks the chart, and that manifests/quorumail.yaml is what it renders; --write renders it anew.
set -euo pipefail
cd "$(dirname "$0")/.."
helm=${HELM:-helm}
chart=charts/quorumail
# A helm built without its release flags believes in a Kubernetes of long ago.
kube=1.34.0
"$helm" lint --strict --quiet --kube-version "$kube" "$chart"
for bad in operator.replicas=0 image.repository= unknown.value=1 operator.watchNamespace=Not_A_Name \
  monitoring.alerts=true monitoring.runbooks=here; do
  if "$helm" template quorumail "$chart" --kube-version "$kube" --set "$bad" >/dev/null 2>&1; then
    echo "the chart's schema lets $bad pass" >&2
    exit 1
  fi
done
monitored=$("$helm" template quorumail "$chart" --kube-version "$kube" --set operator.watchNamespace=mail --set monitoring.labels.release=prometheus \
  --set monitoring.podMonitors=true --set monitoring.prometheusRule=true --set monitoring.dashboards=true --set monitoring.runbooks=https://wiki.test/mail/)
for wanted in 'matchNames: [mail]' 'release: prometheus' 'runbook_url: https://wiki.test/mail/BackupOverdue.md' 'grafana_dashboard: "1"'; do
  if ! grep -qF "$wanted" <<<"$monitored"; then
    echo "with monitoring the chart renders no $wanted" >&2
    exit 1
  fi
done
# What the operator's code relies on: its pods are let in to mailnodes by these labels, and it may write what lets them in.
own=$("$helm" template other "$chart" --kube-version "$kube" --show-only templates/deployment.yaml --show-only templates/rbac.yaml)
for wanted in 'app.kubernetes.io/name: quorumail' 'app.kubernetes.io/component: operator' 'resources: [networkpolicies]'; do
  if ! grep -qF "$wanted" <<<"$own"; then
    echo "the chart renders no $wanted" >&2
    exit 1
  fi
done
hook=$("$helm" template quorumail "$chart" --namespace apart --kube-version "$kube" --show-only templates/test.yaml)
for wanted in 'helm.sh/hook: test' 'command: [/usr/bin/quorumail, check, --namespace, apart]' 'runAsNonRoot: true' 'readOnlyRootFilesystem: true' \
  'capabilities: {drop: [ALL]}' 'seccompProfile: {type: RuntimeDefault}' 'resourceNames: [quorumail-operator]' '- mailclusters.quorumail.io'; do
  if ! grep -qF -- "$wanted" <<<"$hook"; then
    echo "the chart's test renders no $wanted" >&2
    exit 1
  fi
done
if grep -E 'verbs:' <<<"$hook" | grep -vqF 'verbs: [get]'; then
  echo "the chart's test may do more than read" >&2
  exit 1
fi
rendered=$("$helm" template quorumail "$chart" --skip-tests --namespace quorumail-system --kube-version "$kube")
text=$(printf '%s\n' "# Rendered from charts/quorumail by \`make manifests\`; not to be edited." \
  "apiVersion: v1" "kind: Namespace" "metadata: {name: quorumail-system}" "$rendered")
if [ "${1:-}" = --write ]; then
  printf '%s\n' "$text" >manifests/quorumail.yaml
elif [ "$text" != "$(cat manifests/quorumail.yaml)" ]; then
  echo "manifests/quorumail.yaml is not what the chart renders: run make manifests" >&2
  exit 1
fi
echo "chart: ok"
