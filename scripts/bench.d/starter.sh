# The starter through gateway, workerd, Durable Object and container.

"$cfc" setup >/dev/null 2>&1
cp -R "$root/testdata/projects/container-starter" "$work/project"
"$work/project/prepare"
sed -i 's/"max_instances": 5/"max_instances": 100/' "$work/project/wrangler.jsonc"
"$cfc" serve --port 0 >"$work/serve.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do [ -e "$CFC_DATA/serve.json" ] && break; sleep 0.1; done
measure deploy "$cfc" deploy "$work/project"
gateway=$(jq -r .gateway "$CFC_DATA/serve.json")
ask() { curl -sS --fail-with-body --max-time 60 -H 'content-type: application/json' -d "{\"session-id\": \"$1\"}" "http://$gateway/"; }
measure first ask warm-up
for round in $(seq "$rounds"); do
  measure cold ask "session-$round"
  measure warm ask "session-$round"
done
row "starter: deploy (first)" deploy
row "starter: first answer after deploy" first
row "starter: cold session, first answer (curl)" cold
row "starter: warm session, answer (curl)" warm
