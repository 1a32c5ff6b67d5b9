{{/* What names of objects begin with. */}}
{{- define "nearshore.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "nearshore" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-nearshore" (.Release.Name | trunc 30 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* By what pods of this release are selected. */}}
{{- define "nearshore.selector" -}}
app.kubernetes.io/name: nearshore
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "nearshore.labels" -}}
{{ include "nearshore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{/* An image: (list $ image). */}}
{{- define "nearshore.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* What changes restart pods. */}}
{{- define "nearshore.config" -}}
{{- .Values.config | default (.Files.Get "files/nearshore.toml") -}}
{{- end -}}

{{/* A pod that may do nothing but its work: (list $ serviceAccountName graceSeconds). */}}
{{- define "nearshore.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ index . 1 }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
terminationGracePeriodSeconds: 30
{{- end -}}

{{- define "nearshore.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
{{- if . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "nearshore.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The volumes of every pod: ($, size of /tmp). */}}
{{- define "nearshore.volumes" -}}
{{- $root := index . 0 -}}
- name: config
  configMap:
    name: {{ include "nearshore.name" $root }}
- name: secrets
  secret:
    secretName: {{ $root.Values.secretName }}
    optional: true
    defaultMode: 288 # 0440
- name: tmp
  emptyDir:
    sizeLimit: {{ index . 1 }}
{{- end -}}

{{- define "nearshore.mounts" -}}
# Mounts only this file, so that the image's prompt templates beside it stay visible.
- name: config
  mountPath: /etc/nearshore/nearshore.toml
  subPath: nearshore.toml
  readOnly: true
- name: secrets
  mountPath: /run/secrets/nearshore
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/* A process that serves: ports, probes. */}}
{{- define "nearshore.serving" -}}
ports:
  - name: http
    containerPort: 9464
# Ten minutes to read the catalogue and load the model. /healthz says that loops make progress, /readyz that the
# process does its work.
startupProbe:
  httpGet: { path: /healthz, port: http }
  periodSeconds: 10
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /readyz, port: http }
  periodSeconds: 5
  timeoutSeconds: 2
livenessProbe:
  httpGet: { path: /healthz, port: http }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{- define "nearshore.httpEnv" -}}
- name: NEARSHORE__HTTP__LISTEN
  value: 0.0.0.0:9464
# Off: anyone in the cluster could see what single users did. Use the command nearshore inspect.
- name: NEARSHORE__HTTP__INSPECT
  value: "false"
{{- end -}}

{{/* Pods apart from each other where that can be: ($, component). */}}
{{- define "nearshore.spread" -}}
{{- $root := index . 0 -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "nearshore.selector" $root | nindent 8 }}
        app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Account and disruption budget of a role: ($, component). */}}
{{- define "nearshore.beside" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "nearshore.name" $root }}-{{ $component }}
  labels:
    {{- include "nearshore.labels" $root | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "nearshore.name" $root }}-{{ $component }}
  labels:
    {{- include "nearshore.labels" $root | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "nearshore.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ $component }}
{{- end -}}

{{/* Where pods may run: values of a role. */}}
{{- define "nearshore.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What a schema of values cannot refuse. */}}
{{- define "nearshore.refuse" -}}
{{- range $role := list "ingest" "generate" -}}
{{- $values := index $.Values $role -}}
{{- $scaling := $values.scaling -}}
{{- if eq $scaling.kind "none" -}}
{{- if gt (int $values.replicas) (int $.Values.partitions) -}}
{{- fail (printf "%s.replicas = %d is more than partitions = %d: the others would have no work" $role (int $values.replicas) (int $.Values.partitions)) -}}
{{- end -}}
{{- else -}}
{{- if gt (int $scaling.max) (int $.Values.partitions) -}}
{{- fail (printf "%s.scaling.max = %d is more than partitions = %d: the others would have no work" $role (int $scaling.max) (int $.Values.partitions)) -}}
{{- end -}}
{{- if gt (int $scaling.min) (int $scaling.max) -}}
{{- fail (printf "%s.scaling.min = %d is more than %s.scaling.max = %d" $role (int $scaling.min) $role (int $scaling.max)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "://[^/@]*:[^/@]*@" .Values.redis.url -}}
{{- fail "redis.url has a password, and it would be readable in a ConfigMap: write it into the secret, and redis.password_file into config" -}}
{{- end -}}
{{- $images := dict "image.tag" .Values.image.tag "generate.gpu.image.tag" .Values.generate.gpu.image.tag "models.init.image" .Values.models.init.image "models.image.reference" .Values.models.image.reference "topics.job.image" .Values.topics.job.image -}}
{{- range $value, $image := $images -}}
{{- if regexMatch "(^|:)latest$" $image -}}
{{- fail (printf "%s is latest, which is another image every day: name a version or a digest" $value) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.models.source "init") (not .Values.models.init.image) -}}
{{- fail "models.source = init needs models.init.image: the image of the container that fetches the model" -}}
{{- end -}}
{{- if and (eq .Values.models.source "image") (not .Values.models.image.reference) -}}
{{- fail "models.source = image needs models.image.reference: the OCI image with the model" -}}
{{- end -}}
{{- end -}}
