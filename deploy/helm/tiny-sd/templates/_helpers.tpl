{{/* Names and labels. "component" is triton, gateway, checkpoint or test. */}}

{{- define "tiny-sd.fullname" -}}
{{- $release := .Release.Name | trunc 32 | trimSuffix "-" }}
{{- contains .Chart.Name $release | ternary $release (printf "%s-%s" $release .Chart.Name) }}
{{- end }}

{{- define "tiny-sd.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "tiny-sd.labels" -}}
{{ include "tiny-sd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Name and labels of an object; it is called after its component, or after "suffix". */}}
{{- define "tiny-sd.metadata" -}}
name: {{ include "tiny-sd.fullname" .root }}-{{ .suffix | default .component }}
labels:
  {{- include "tiny-sd.labels" . | nindent 2 }}
{{- end }}

{{- define "tiny-sd.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Environment variables from a dictionary: names are unique and in order. */}}
{{- define "tiny-sd.env" }}
{{- range $name, $value := . -}}
- name: {{ $name }}
  value: {{ $value | quote }}
{{ end }}
{{- end }}

{{/* Security: what the Pod Security Standard "restricted" asks for, and a file system that nobody writes to. */}}

{{- define "tiny-sd.podSecurity" -}}
automountServiceAccountToken: false
# A Service called tiny-sd-gateway would set TINY_SD_GATEWAY_PORT in every pod, which the gateway reads as a setting.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tiny-sd.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Where pods go. The old pods of a rolling update do not count. */}}

{{- define "tiny-sd.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "tiny-sd.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}

{{- define "tiny-sd.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $ $field -}}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{ end }}
{{- end }}
{{- end }}

{{/* How a pod ends, in seconds: first everybody leaves it, then what it has is finished. The gateway is left when its
endpoint is gone from kube-proxies and Ingress. Callers by gRPC stay with Triton until their connection is as old as it may
be (10 s, give or take a tenth), look the name up at most every 30 s, and may be told what a DNS cache knew for 30 s more. */}}
{{- define "tiny-sd.gatewayLeaveSeconds" -}} 10 {{- end }}
{{- define "tiny-sd.tritonLeaveSeconds" -}} 75 {{- end }}
{{- define "tiny-sd.drainSeconds" -}} {{ add .Values.requestTimeoutSeconds 10 }} {{- end }}

{{/* The checkpoint: a folder for each commit, which appears whole or not at all. */}}

{{- define "tiny-sd.checkpointFolder" -}}
{{- with .Values.checkpoint }}
{{- .folder | default (printf "%s-%s" (base .repository) (.revision | trunc 12)) }}
{{- end }}
{{- end }}

{{- define "tiny-sd.checkpointPath" -}}
/checkpoints/{{ include "tiny-sd.checkpointFolder" . }}
{{- end }}

{{- define "tiny-sd.checkpointClaim" -}}
{{- .Values.checkpoint.existingClaim | default (printf "%s-checkpoint" (include "tiny-sd.fullname" .)) }}
{{- end }}

{{/* Whether Triton's pod fetches it: a Job could not have a volume that is the pod's alone. */}}
{{- define "tiny-sd.podFetches" -}}
{{- has .Values.checkpoint.storage (list "single" "pod") | ternary "yes" "" }}
{{- end }}

{{- define "tiny-sd.fetchContainer" -}}
name: fetch
image: {{ include "tiny-sd.image" (dict "root" . "image" .Values.triton.image) }}
imagePullPolicy: {{ .Values.triton.image.pullPolicy }}
command: [sh, -euc]
args:
  - |
    if [ -e "$OUT" ]; then {{ empty (include "tiny-sd.podFetches" .) | ternary `exec python /opt/tiny-sd/tools/checkpoint.py verify "$OUT"` "exit" }}; fi
    exec python /opt/tiny-sd/tools/checkpoint.py fetch "$REPOSITORY" --revision "$REVISION" --out "$OUT"
env:
  {{- /* Interrupted downloads go on from the scratch volume. The image asks NVIDIA's runtime for all GPUs: here it gets none. */}}
  {{- $usual := dict "REPOSITORY" .Values.checkpoint.repository "REVISION" .Values.checkpoint.revision
      "OUT" (include "tiny-sd.checkpointPath" .) "HOME" "/tmp" "HF_HOME" "/tmp/huggingface" "HF_HUB_OFFLINE" "0"
      "NVIDIA_VISIBLE_DEVICES" "void" }}
  {{- mergeOverwrite $usual .Values.checkpoint.env | include "tiny-sd.env" | trim | nindent 2 }}
  {{- with .Values.checkpoint.tokenSecret }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef: { name: {{ . }}, key: HF_TOKEN }
  {{- end }}
resources:
  {{- toYaml .Values.checkpoint.resources | nindent 2 }}
{{ include "tiny-sd.containerSecurity" . }}
volumeMounts:
  - { name: checkpoints, mountPath: /checkpoints }
  - { name: tmp, mountPath: /tmp }
{{- end }}

{{/* The gateway's database, for everything that opens it. */}}

{{- define "tiny-sd.databaseEnv" -}}
- name: TINY_SD_GATEWAY_DATABASE_URL
  {{- with .Values.gateway.database.secret }}
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: url }
  {{- else }}
  value: sqlite:////data/gateway.db
  {{- end }}
{{- end }}

{{- define "tiny-sd.databaseMounts" -}}
- { name: tmp, mountPath: /tmp }
{{- if not .Values.gateway.database.secret }}
- { name: data, mountPath: /data }
{{- end }}
{{- end }}

{{- define "tiny-sd.databaseVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if not .Values.gateway.database.secret }}
- name: data
  persistentVolumeClaim:
    claimName: {{ include "tiny-sd.fullname" . }}-gateway
{{- end }}
{{- end }}

{{/* Generations in flight in all Triton pods of the release, a minute's average. KServe's Deployment is called -predictor. */}}
{{- define "tiny-sd.inFlightQuery" -}}
{{- $workload := .Values.kserve.enabled | ternary "predictor" "triton" -}}
sum(avg_over_time(tiny_sd_jobs_in_flight{namespace="{{ .Release.Namespace }}",pod=~"{{ include "tiny-sd.fullname" . }}-{{ $workload }}-.*"}[1m]))
{{- end }}

{{- define "tiny-sd.tracesPort" -}}
{{- $url := urlParse .Values.tracing.endpoint }}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "https" | ternary "443" "80") }}
{{- end }}

{{- define "tiny-sd.count" -}}
{{ toString . | trimSuffix "%" }}
{{- end }}

{{/* What the schema cannot say, or not clearly: above all values that do not go together. */}}
{{- define "tiny-sd.check" -}}
{{- range $component := list "triton" "gateway" }}
  {{- if eq (index $.Values $component).image.tag "latest" }}
    {{- fail (printf "%s.image.tag: latest is another image tomorrow; name a version" $component) }}
  {{- end }}
{{- end }}
{{- $several := or (gt (int .Values.triton.replicas) 1) (ne .Values.autoscaling.kind "none") }}
{{- with .Values.checkpoint }}
  {{- if hasKey .env "HF_TOKEN" }}
    {{- fail "checkpoint.env.HF_TOKEN: everybody could read it there; put it into a Secret, and name that in checkpoint.tokenSecret" }}
  {{- end }}
  {{- if and (eq .storage "existing") (not (and .existingClaim .folder)) }}
    {{- fail "checkpoint.storage existing: name checkpoint.existingClaim, and the checkpoint.folder in it" }}
  {{- end }}
  {{- if and (ne .storage "existing") (or .existingClaim .folder) }}
    {{- fail "checkpoint.existingClaim and folder are for checkpoint.storage existing" }}
  {{- end }}
  {{- if eq .storage "single" }}
    {{- if $several }}
      {{- fail "checkpoint.storage single: several Triton pods cannot have the volume; allowed: shared, pod, existing" }}
    {{- end }}
    {{- if ne (include "tiny-sd.count" $.Values.triton.maxSurge) "0" }}
      {{- fail "checkpoint.storage single: a new pod may not get the volume while the old one has it; set triton.maxSurge to 0 and maxUnavailable to 1" }}
    {{- end }}
  {{- end }}
{{- end }}
{{- with .Values.triton }}
  {{- if hasKey .env "TINY_SD_ADMIN_KEY" }}
    {{- fail "triton.env.TINY_SD_ADMIN_KEY: everybody could read it there; put it into a Secret, and name that in triton.adminKeySecret" }}
  {{- end }}
  {{- if and (gt (int .gpu.count) 1) (hasSuffix ".shared" .gpu.resource) }}
    {{- fail "triton.gpu.count: more shares of a time-sliced GPU give no more of it; allowed: 1" }}
  {{- end }}
  {{- if and (eq (include "tiny-sd.count" .maxSurge) "0") (eq (include "tiny-sd.count" .maxUnavailable) "0") }}
    {{- fail "triton.maxSurge and maxUnavailable are both 0: no pod could ever be replaced" }}
  {{- end }}
{{- end }}
{{- if and (gt (int .Values.gateway.replicas) 1) (not .Values.gateway.database.secret) }}
  {{- fail "gateway.replicas: several gateways need PostgreSQL; set gateway.database.secret" }}
{{- end }}
{{- if and (or .Values.ingress.enabled .Values.httpRoute.enabled) (not .Values.publicUrl) }}
  {{- fail "publicUrl: say what callers reach the gateway by, like https://pictures.example.com" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
  {{- fail "httpRoute.parentRefs: name the Gateway to attach to" }}
{{- end }}
{{- with .Values.autoscaling }}
  {{- if ne .kind "none" }}
    {{- if gt (int .minReplicas) (int .maxReplicas) }}
      {{- fail "autoscaling.minReplicas is above maxReplicas" }}
    {{- end }}
    {{- $held := min $.Values.triton.maxInFlight (mul 32 (max 1 $.Values.triton.gpu.count)) }}
    {{- if ge (int .jobsInFlight) (int $held) }}
      {{- fail (printf "autoscaling.jobsInFlight: must be below %d, or a full pod is not seen as too much: it takes triton.maxInFlight, and the U-Net of each GPU holds 32" (int $held)) }}
    {{- end }}
  {{- end }}
  {{- if and (eq .kind "keda") (not .prometheusUrl) }}
    {{- fail "autoscaling.prometheusUrl: KEDA asks Prometheus itself; say where it is" }}
  {{- end }}
  {{- if and (eq .kind "hpa") $.Values.kserve.enabled }}
    {{- fail "autoscaling.kind hpa: KServe scales its own Deployments; use keda, or none" }}
  {{- end }}
{{- end }}
{{- end }}
